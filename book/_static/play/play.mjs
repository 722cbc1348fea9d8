// Sliders for the figures of {play}: one or two, and a strip with a frame for each of their positions.
"use strict";
{
  const folder = new URL(".", document.currentScript.src);

  const setUp = async (controls) => {
    const { frame, sliders, remarks } = JSON.parse(controls.dataset.facts);
    const [width, height] = frame;
    const strip = new Image();
    strip.src = new URL(controls.dataset.strip, folder);
    await strip.decode();

    const still = controls.closest("figure").querySelector("img");
    const canvas = Object.assign(document.createElement("canvas"), { width, height, className: "play-picture" });
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", still.alt);
    const remark = Object.assign(document.createElement("p"), { className: "play-remark" });

    const inputs = sliders.map(({ name, stops, start }, i) => {
      const input = Object.assign(document.createElement("input"), { type: "range", min: 0, max: stops.length - 1 });
      input.value = start;
      const value = document.createElement("output");
      const label = document.createElement("label");
      label.append(Object.assign(document.createElement("span"), { textContent: name }), input, value);
      controls.append(label);
      const tell = () => {
        value.textContent = stops[input.value];
        input.setAttribute("aria-valuetext", `${name} ${stops[input.value]}. ${remark.textContent}`);
      };
      return { input, tell };
    });

    const draw = () => {
      const [column, row = 0] = inputs.map(({ input }) => Number(input.value)).reverse();
      canvas.getContext("2d").drawImage(strip, column * width, row * height, width, height, 0, 0, width, height);
      remark.textContent = remarks[row * sliders.at(-1).stops.length + column];
      inputs.forEach(({ tell }) => tell());
    };
    controls.addEventListener("input", draw);
    controls.append(remark);
    draw();
    (still.closest("a") ?? still).replaceWith(canvas);
  };

  // the strip is fetched when the reader is a screen away
  const watcher = new IntersectionObserver(
    (entries) =>
      entries
        .filter((entry) => entry.isIntersecting)
        .forEach(({ target }) => {
          watcher.unobserve(target);
          setUp(target).catch(() => {}); // the still picture stays
        }),
    { rootMargin: "100%" },
  );
  document.querySelectorAll(".play-controls").forEach((controls) => watcher.observe(controls));
}
