// The search page: which hits come first, and excerpts of words alone: no code, and formulas once. Loaded after Sphinx's own scripts.
"use strict";

const asked = (new URLSearchParams(location.search).get("q") || "").toLowerCase().split(/\W+/).filter(Boolean);

// A chapter whose address has the word (06-eta, 04-ddim-derivation) is the one that explains it; so are these. Chapters come before reference pages.
const EXPLAINED = { cosine: "01", snr: "01", score: "02", ancestral: "02", guidance: "03", prediction: "03", velocity: "03", ema: "03", marginals: "04", spacing: "05", fid: "05", flow: "07" };
Scorer.score = ([page, , , , score]) => {
  const chapter = page.match(/^book\/(\d\d)-(.*)/);
  const named = chapter && asked.some(word => chapter[2].split("-").includes(word) || EXPLAINED[word] === chapter[1]);
  return score + (named ? 200 : 0) + (chapter ? 100 : page.startsWith("book/deeper/") ? 50 : 0);
};

const textOf = Search.htmlToText;
Search.htmlToText = (html, anchor) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  for (const extra of page.querySelectorAll(".katex-html, .eqno, .highlight, .article-header-buttons, #jb-print-docs-body, h1, details.hide > summary, nav, footer, button")) extra.remove();
  return textOf(page.documentElement.outerHTML, anchor);
};

// The excerpt begins a little before the first of the words: where a word begins ("eta" is not in "detail"), else at the top of the page.
Search.makeSearchSummary = (html, words, anchor) => {
  const text = Search.htmlToText(html, anchor).replace(/\s+/g, " ").trim();
  if (!text) return null;
  const places = [...words].map(word => text.search(new RegExp(`(?<![\\p{L}\\p{N}_])${word.replace(/[^\p{L}\p{N}]/gu, "\\$&")}`, "iu")));
  const start = Math.max(0, Math.min(...places.filter(place => place >= 0), text.length) % text.length - 120);
  const summary = document.createElement("p");
  summary.classList.add("context");
  summary.textContent = `${start ? "…" : ""}${text.slice(start, start + 240).trim()}…`;
  return summary;
};

document.addEventListener("DOMContentLoaded", () => {
  const results = document.getElementById("search-results");
  new MutationObserver(() => markOnlyWords(results)).observe(results, { childList: true, subtree: true });
});
