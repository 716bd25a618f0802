"""The questions and the progress of the course: predictions, the quiz of each lesson, and the course page."""

from moe_lessons.course.interview import Answer, Interview, figures, lacking
from moe_lessons.course.page import CoursePage
from moe_lessons.course.question import CurvePrediction, NumberPrediction, Prediction
from moe_lessons.course.quiz import Quiz
from moe_lessons.support import progress
