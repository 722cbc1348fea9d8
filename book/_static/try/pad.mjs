// A pad to draw on with a finger, a mouse or the keyboard: white on black. Its drawing as an image that a network knows.

const SIDE = 28;

export class Pad {
  constructor(canvas, width) {
    this.canvas = canvas;
    this.width = width; // of the pen, in pixels of the pad
    this.context = canvas.getContext("2d", { willReadFrequently: true });
    this.onchange = () => {};
    this.pen = { x: canvas.width / 2, y: canvas.height / 4, down: false };
    this.empty = true;
    canvas.addEventListener("pointerdown", (event) => {
      canvas.setPointerCapture(event.pointerId);
      this.pen = { ...this.place(event), down: true };
      this.line(this.pen);
    });
    canvas.addEventListener("pointermove", (event) => {
      if (!event.buttons) return;
      const parts = event.getCoalescedEvents?.() ?? []; // all places since the last event, where the browser tells them
      for (const part of parts.length ? parts : [event]) this.line(this.place(part));
    });
    canvas.addEventListener("pointerup", () => (this.pen.down = false));
    canvas.addEventListener("keydown", (event) => this.key(event));
    canvas.addEventListener("focus", () => this.mark());
    canvas.addEventListener("blur", () => this.mark());
    this.drawing = document.createElement("canvas"); // what was drawn, without the pen's mark
    [this.drawing.width, this.drawing.height] = [canvas.width, canvas.height];
    this.ink = this.drawing.getContext("2d", { willReadFrequently: true });
    this.clear();
  }

  place({ clientX, clientY }) {
    const box = this.canvas.getBoundingClientRect();
    const scale = this.canvas.width / box.width;
    return { x: (clientX - box.left) * scale, y: (clientY - box.top) * scale };
  }

  line({ x, y }) {
    Object.assign(this.ink, { lineCap: "round", lineJoin: "round", strokeStyle: "#fff", lineWidth: this.width() });
    this.ink.beginPath();
    this.ink.moveTo(this.pen.x, this.pen.y);
    this.ink.lineTo(x, y);
    this.ink.stroke();
    Object.assign(this.pen, { x, y });
    this.empty = false;
    this.changed();
  }

  key(event) {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      const within = (value) => Math.min(this.canvas.width, Math.max(0, value));
      const to = { x: within(this.pen.x + 10 * move[0]), y: within(this.pen.y + 10 * move[1]) };
      if (this.pen.down) this.line(to);
      else Object.assign(this.pen, to);
    } else if (event.key === " ") {
      this.pen.down = !this.pen.down;
      if (this.pen.down) this.line(this.pen);
    } else if (event.key === "Backspace") {
      this.clear();
    } else {
      return;
    }
    event.preventDefault();
    this.mark();
  }

  clear() {
    this.ink.fillStyle = "#000";
    this.ink.fillRect(0, 0, this.drawing.width, this.drawing.height);
    this.empty = true;
    this.changed();
  }

  // Put an image [28 × 28] in [-1, 1] on the pad.
  set(image) {
    const small = document.createElement("canvas");
    [small.width, small.height] = [SIDE, SIDE];
    const pixels = new ImageData(SIDE, SIDE);
    image.forEach((value, i) => pixels.data.set([...Array(3).fill(127.5 * (value + 1)), 255], 4 * i));
    small.getContext("2d").putImageData(pixels, 0, 0);
    this.ink.imageSmoothingEnabled = false;
    this.ink.drawImage(small, 0, 0, this.drawing.width, this.drawing.height);
    this.empty = false;
    this.changed(image);
  }

  changed(exact = null) {
    this.exact = exact; // an image that was put here comes back as it was
    this.mark();
    this.onchange();
  }

  // The drawing, and where the pen is if the keyboard moves it.
  mark() {
    this.context.drawImage(this.drawing, 0, 0);
    if (!this.canvas.matches(":focus-visible")) return;
    this.context.beginPath();
    this.context.arc(this.pen.x, this.pen.y, this.width() / 2 + 3, 0, 2 * Math.PI);
    Object.assign(this.context, { strokeStyle: this.pen.down ? "#f4a261" : "#8ecae6", lineWidth: 3 });
    this.context.stroke();
  }

  // The drawing as 28 × 28 pixels in [-1, 1]. `centred` treats it as MNIST's makers treated theirs: scaled to a box of 20
  // pixels, its centre of mass in the middle (LeCun et al. 1998); otherwise it stays where it is.
  image(centred) {
    if (this.exact) return Float32Array.from(this.exact);
    const { width, height } = this.drawing;
    const ink = this.ink.getImageData(0, 0, width, height).data;
    let [left, right, top, bottom, mass, x_mass, y_mass] = [width, 0, height, 0, 0, 0, 0];
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const value = ink[4 * (y * width + x)];
        if (!value) continue;
        [left, right, top, bottom] = [Math.min(left, x), Math.max(right, x + 1), Math.min(top, y), Math.max(bottom, y + 1)];
        [mass, x_mass, y_mass] = [mass + value, x_mass + value * (x + 0.5), y_mass + value * (y + 0.5)];
      }
    }
    const small = document.createElement("canvas");
    [small.width, small.height] = [SIDE, SIDE];
    const context = small.getContext("2d");
    context.fillRect(0, 0, SIDE, SIDE);
    if (mass > 0) {
      const scale = centred ? 20 / Math.max(right - left, bottom - top) : SIDE / width;
      const [x, y] = centred ? [x_mass / mass, y_mass / mass] : [width / 2, height / 2];
      context.imageSmoothingQuality = "high";
      context.translate(SIDE / 2 - scale * x, SIDE / 2 - scale * y);
      context.scale(scale, scale);
      context.drawImage(this.drawing, 0, 0);
    }
    const pixels = context.getImageData(0, 0, SIDE, SIDE).data;
    return Float32Array.from({ length: SIDE * SIDE }, (_, i) => pixels[4 * i] / 127.5 - 1);
  }
}
