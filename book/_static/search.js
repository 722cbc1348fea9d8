// The search page: which hits come first, and excerpts of words alone: no code, and formulas once. Loaded after Sphinx's own scripts.
"use strict";

const asked = (new URLSearchParams(location.search).get("q") || "").toLowerCase().split(/\W+/).filter(Boolean);

// A chapter whose address has the word (06-eta, 04-ddim-derivation) is the one that explains it; chapters come before reference pages.
Scorer.score = ([page, , , , score]) => {
  const chapter = page.match(/^book\/\d\d-(.*)/);
  const named = chapter && asked.some(word => chapter[1].split("-").includes(word));
  return score + (named ? 200 : 0) + (chapter ? 100 : page.startsWith("book/deeper/") ? 50 : 0);
};

const textOf = Search.htmlToText;
Search.htmlToText = (html, anchor) => {
  const page = new DOMParser().parseFromString(html, "text/html");
  for (const extra of page.querySelectorAll(".katex-html, .eqno, .highlight, .article-header-buttons, nav, footer, button")) extra.remove();
  return textOf(page.documentElement.outerHTML, anchor);
};

document.addEventListener("DOMContentLoaded", () => {
  const results = document.getElementById("search-results");
  new MutationObserver(() => markOnlyWords(results)).observe(results, { childList: true, subtree: true });
});
