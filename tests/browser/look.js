// The pictures of a view: is each as many pixels wide as the screen has for it? Then the sizes of all other texts.
root => {
    const canvases = [...root.querySelectorAll('canvas')];
    const isCrisp = (canvas) => {
        const { width, height } = canvas.getBoundingClientRect();
        const [across, down] = [width * devicePixelRatio, height * devicePixelRatio];
        return Math.abs(canvas.width - across) < 1 && Math.abs(canvas.height - down) < 1;
    };
    const hasText = (element) => [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim());
    const texts = [...root.querySelectorAll('*')].filter(hasText);
    return [canvases.every(isCrisp), [...new Set(texts.map((element) => getComputedStyle(element).fontSize))].sort()];
}
