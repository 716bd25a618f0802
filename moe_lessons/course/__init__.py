"""What the course asks and remembers: predictions, the quiz of each lesson, and the page that shows how far you are."""

from moe_lessons.course import progress
from moe_lessons.course.interview import Answer, Interview, figures, lacking
from moe_lessons.course.page import CoursePage
from moe_lessons.course.question import CurvePrediction, NumberPrediction, Prediction
from moe_lessons.course.quiz import Quiz
