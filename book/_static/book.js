// What the pages do besides being read. Without this script everything can still be read and reached.
"use strict";

const root = document.documentElement;
const reducedMotion = matchMedia("(prefers-reduced-motion: reduce)");

// --- What is wider than its place is marked, for the style sheet to show it, and can be scrolled by keyboard; only that is a stop of the Tab key.

const KINDS = { ".formula": "Formula", pre: "Code", ".pst-scrollable-table-container, .output.text_html": "Table" };

function mark(box) {
  const scrolls = box.scrollWidth > box.clientWidth + 1;
  return () => {
    if (scrolls === box.classList.contains("scrolls")) return;
    box.classList.toggle("scrolls", scrolls);
    if (!scrolls) for (const name of ["tabindex", "role", "aria-label"]) box.removeAttribute(name);
    else {
      box.tabIndex = 0;
      box.setAttribute("role", "group");
      box.setAttribute("aria-label", `${Object.entries(KINDS).find(([selector]) => box.matches(selector))[1]}, scrolls sideways`);
    }
  };
}

// As soon as it is laid out, and again when its size or that of what is in it changes: first all are measured, then all marked.
function markScrollable() {
  const boxes = `.bd-article :is(${Object.keys(KINDS).join()})`;
  const watch = new ResizeObserver(sizes => {
    const changed = new Set(sizes.map(size => size.target.closest(boxes)));
    for (const write of [...changed].map(mark)) write();
  });
  for (const box of document.querySelectorAll(boxes)) {
    watch.observe(box);
    if (box.firstElementChild) watch.observe(box.firstElementChild);
  }
}

// The theme does the same when everything is loaded: box by box, measuring each anew after marking the one before. Not here.
addEventListener("load", event => event.stopImmediatePropagation());

// --- Paper is white, and nothing that was folded is missing from it.

const opened = [];

function prepareForPaper() {
  root.dataset.screenTheme ??= root.dataset.theme;
  root.dataset.theme = "light";
  for (const fold of document.querySelectorAll(".bd-article details:not([open], .hide)")) {
    fold.open = true;
    opened.push(fold);
  }
}

function backToScreen() {
  if (root.dataset.screenTheme) root.dataset.theme = root.dataset.screenTheme;
  delete root.dataset.screenTheme;
  while (opened.length) opened.pop().open = false;
}

// --- A picture is enlarged by a click, a tap or the Enter key.

function enlarge(picture) {
  let dialog = document.getElementById("enlarged");
  if (!dialog) {
    dialog = document.createElement("dialog");
    dialog.id = "enlarged";
    dialog.setAttribute("aria-label", "The picture, enlarged");
    dialog.innerHTML = '<button type="button" aria-label="Close">×</button><img alt="">';
    dialog.addEventListener("click", () => dialog.close());
    document.body.append(dialog);
  }
  const copy = dialog.querySelector("img");
  copy.src = picture.currentSrc || picture.src;
  copy.alt = picture.alt;
  copy.className = picture.classList.contains("paper") ? "paper" : "";
  dialog.showModal();
}

function letPicturesEnlarge() {
  for (const picture of document.querySelectorAll(".bd-article :is(.cell_output, figure) img")) {
    if (picture.closest("a, button")) continue;
    picture.classList.add("enlarges");
    picture.tabIndex = 0;
    picture.setAttribute("role", "button");
    picture.setAttribute("aria-label", `Enlarge: ${picture.alt}`);
    picture.addEventListener("click", () => enlarge(picture));
    picture.addEventListener("keydown", event => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        enlarge(picture);
      }
    });
  }
}

// --- A look at the equation, theorem, exercise, citation or term that a link leads to, when the pointer rests on it or it has the focus.

const SHOWN = ".math.displayed, .proof, .exercise, .admonition, figure, .citation, dt, tr";
const pages = new Map(); // address → promise of the page

async function destination(link) {
  const address = new URL(link.href);
  const id = decodeURIComponent(address.hash.slice(1));
  address.hash = "";
  let source = document;
  if (address.href !== location.href.split("#")[0]) {
    if (!pages.has(address.href)) {
      pages.set(address.href, fetch(address).then(answer => answer.text()).then(text => {
        const page = new DOMParser().parseFromString(text, "text/html");
        for (const image of page.images) image.src = new URL(image.getAttribute("src"), address).href;
        return page;
      }));
    }
    source = await pages.get(address.href);
  }
  const target = source.getElementById(id);
  const box = target?.matches(SHOWN) ? target : target?.matches("span, a") ? target.closest(SHOWN) : null;
  if (!box || box.closest("table")?.matches(".indextable")) return null;
  const shown = [box.cloneNode(true)];
  if (box.matches("dt") && box.nextElementSibling) shown.push(box.nextElementSibling.cloneNode(true)); // a term's explanation
  for (const part of shown) {
    part.removeAttribute("id");
    for (const inner of part.querySelectorAll("[id]")) inner.removeAttribute("id");
  }
  return shown;
}

function setUpPreviews() {
  const preview = document.createElement("div");
  preview.id = "preview";
  preview.setAttribute("role", "tooltip");
  preview.hidden = true;
  let current = null, timer = 0;

  const hide = () => { clearTimeout(timer); current?.removeAttribute("aria-describedby"); current = null; preview.hidden = true; };

  const show = async link => {
    current = link;
    const content = await destination(link).catch(() => null); // from the disk, other pages cannot be read
    if (!content || current !== link) return;
    preview.replaceChildren(...content);
    preview.hidden = false;
    document.querySelector(".bd-article").append(preview);
    const place = link.getBoundingClientRect(), frame = preview.offsetParent.getBoundingClientRect();
    const left = Math.max(16, Math.min(place.left, innerWidth - preview.offsetWidth - 16));
    const below = place.bottom + preview.offsetHeight + 12 < innerHeight || place.top < preview.offsetHeight + 12;
    preview.style.left = `${left - frame.left}px`;
    preview.style.top = `${(below ? place.bottom + 6 : place.top - preview.offsetHeight - 6) - frame.top}px`;
    link.setAttribute("aria-describedby", "preview");
  };

  const wanted = event => event.target.closest?.(".bd-article a.internal[href*='#'], .bd-article a.reference[href^='#']");
  document.addEventListener("pointerover", event => {
    if (event.pointerType === "touch" || preview.contains(event.target)) return;
    const link = wanted(event);
    if (link === current) return;
    hide();
    if (link && !link.matches(".headerlink")) timer = setTimeout(show, 250, link);
  });
  document.addEventListener("focusin", event => { const link = wanted(event); if (link?.matches(":focus-visible")) show(link); });
  document.addEventListener("focusout", hide);
  document.addEventListener("keydown", event => { if (event.key === "Escape") hide(); });
}

// --- A solution's button is called what it opens; that it opens and closes is said by its state.

function nameButtons() {
  for (const button of document.querySelectorAll(".toggle-button")) {
    button.setAttribute("aria-label", button.closest(".admonition-title").textContent.trim());
  }
}

// --- Words that were searched for are marked at the beginning of a word: "eta", but not in "beta".

function markOnlyWords(place) {
  for (const mark of place.querySelectorAll("span.highlighted")) {
    if (/[\p{L}\p{N}_]$/u.test(mark.previousSibling?.data ?? "")) mark.replaceWith(...mark.childNodes);
  }
}

// --- The cover's moving picture: once, and again by its button; not for those who want no motion. It comes when all else is there.

async function setUpCover() {
  const picture = document.querySelector(".cover-picture");
  if (!picture || reducedMotion.matches) return;
  const play = () => { picture.classList.remove("plays"); void picture.offsetWidth; picture.classList.add("plays"); };
  if (document.readyState !== "complete") await new Promise(done => addEventListener("pageshow", done, { once: true }));
  const film = Object.assign(new Image(), { src: picture.dataset.film });
  await film.decode();
  picture.querySelector("button").addEventListener("click", play);
  play();
}

markScrollable();
addEventListener("beforeprint", prepareForPaper);
addEventListener("afterprint", backToScreen);
matchMedia("print").addEventListener("change", change => (change.matches ? prepareForPaper() : backToScreen()));
letPicturesEnlarge();
setUpPreviews();
setUpCover();
addEventListener("DOMContentLoaded", nameButtons); // every deferred script has made its buttons by then
setTimeout(markOnlyWords, 50, document); // Sphinx marks after 10 milliseconds
