// Notes of each text how it was drawn last: its size on the screen in CSS pixels, and whether it lies in its picture.
() => {
  const { prototype } = CanvasRenderingContext2D;
  const { fillText } = prototype;
  window.texts = {};
  prototype.fillText = function (text, x, y) {
    const now = this.getTransform();
    const wide = this.measureText(text).width;
    const size = parseFloat(this.font.match(/[\d.]+px/));
    const left = { left: 0, center: -wide / 2, right: -wide }[this.textAlign];
    const { width, height } = this.canvas;
    const ends = [left, left + wide].flatMap((dx) =>
      [-size / 2, size / 2].map((dy) => new DOMPoint(x + dx, y + dy)),
    );
    const isIn = ends
      .map((end) => now.transformPoint(end))
      .every((end) => end.x > -2 && end.x < width + 2 && end.y > -2 && end.y < height + 2);
    window.texts[text] = [Math.round((size * Math.hypot(now.a, now.b)) / devicePixelRatio), isIn];
    fillText.apply(this, arguments);
  };
};
