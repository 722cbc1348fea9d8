// What there is to see on a page, in one visit (tests/test_site.py).
() => {
  const article = document.querySelector('article') || document.body;
  const all = selector => [...article.querySelectorAll(selector)];
  const texts = root => { const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT), found = [];
                          for (let node = walker.nextNode(); node; node = walker.nextNode()) found.push(node); return found; };
  const source = /\$\$|\\\(|\\\[|\$\\[a-z]|\|[-—–]+\|/;  // of a formula or a table that was not rendered
  const raw = texts(article).filter(node => !node.parentElement.closest('pre, code, script, style, .katex') && source.test(node.data));

  const box = e => e.getBoundingClientRect();
  const inline = all('.katex').filter(e => !e.closest('.formula') && e.checkVisibility());
  const clipped = inline.filter(e => {
    const block = e.closest('td, th, li, dd, dt, p, h1, h2, h3, h4, figcaption');
    if (!block || block.closest('.scrolls')) return false;
    return [...e.querySelectorAll('.katex-base')].some(base => box(base).right > box(block).right + 1);
  });
  const orphans = inline.filter(e => {
    const after = e.closest('.math')?.nextSibling, last = [...e.querySelectorAll('.katex-base')].pop();
    if (after?.nodeType !== 3 || !/^[.,;:!?)]/.test(after.data) || !last) return false;
    const range = document.createRange();
    range.setStart(after, 0); range.setEnd(after, 1);
    return box(range).top > box(last).bottom || box(range).bottom < box(last).top;
  });
  const collisions = all('.math.displayed').filter(e => {
    const number = e.querySelector('.eqno'), formula = e.querySelector('.formula');
    return number && box(number).left < box(formula).right && box(formula).left < box(number).right;
  });
  const words = e => e.closest('.math, p, pre, li')?.textContent.trim().slice(0, 60);
  return {
    overflow: document.documentElement.scrollWidth - window.innerWidth,
    formulas: all('.math').length,
    rendered: all('.math .katex').length,
    mathml: all('.math math').length,
    raw: raw.map(node => node.data.trim().slice(0, 80)),
    clipped: clipped.map(words), orphans: orphans.map(words), collisions: collisions.map(words),
    tab_stops: all('.math, .math *').filter(e => e.tabIndex >= 0 && !e.matches('a, .scrolls')).length,
    uncued: all('.formula, pre').filter(e => e.checkVisibility() && e.scrollWidth > e.clientWidth + 1 && !e.matches('.scrolls[tabindex]')).map(words),
    'formulas too wide for a phone': all('.formula.scrolls').map(words),
    'code beyond 88 columns': all('pre').filter(e => e.innerText.split('\n').some(line => line.length > 88)).map(words),
    'figures without a dark twin': all('.cell_output img.paper').map(e => e.alt.slice(0, 60)),
    'figures without a caption': all('.cell_output img:not(.only-dark)').filter(e => !e.closest('figure')).map(e => e.alt.slice(0, 60)),
    'folds without a name': all('details.hide').filter(e => e.querySelector('.collapsed').innerText === 'Show the code').map(e => e.querySelector('pre')?.textContent.slice(0, 60)),
    without_alt: all('img').filter(e => !e.alt.trim() && !e.closest('.thumbnail')).map(e => e.src),
    squeezed: all('img').filter(e => e.checkVisibility() && e.naturalWidth && getComputedStyle(e).objectFit === 'fill' && e.clientHeight > 20
      && Math.abs(e.clientWidth / e.clientHeight / (e.naturalWidth / e.naturalHeight) - 1) > 0.05).map(e => e.src.slice(-60)),
    captions: all('figcaption').length,
    'folds with a gap': all('.toggle-hidden').filter(e => box(e).height > box(e.querySelector('.admonition-title')).height + 32).map(words),
    'folds in a row': all('.cell:has(> details.hide:only-child):not(:has(.cell_output)) + .cell:has(> details.hide:first-child)').map(e => e.textContent.trim().slice(0, 60)),
    'misnamed folds': all('summary[aria-label], .toggle-button[aria-label*="hidden content"]').map(e => e.parentElement.textContent.trim().slice(0, 60)),
    'hidden captions': all('figcaption').filter(e => !e.checkVisibility() && !e.closest('[hidden]')).map(e => e.textContent.slice(0, 60)),
    broken_images: [...document.images].filter(e => e.complete && !e.naturalWidth).map(e => e.src),
    eager: all('img').slice(1).filter(e => e.loading !== 'lazy').map(e => e.src.slice(-60)),
    ids: [...document.querySelectorAll('[id]')].map(e => e.id),
    links: [...document.querySelectorAll('a[href]')].map(e => e.getAttribute('href')),
    description: document.querySelector('meta[name=description]')?.content || '',
    head: Object.fromEntries([...document.querySelectorAll('meta[property], meta[name]')].map(e => [e.getAttribute('property') || e.name, e.content])),
  }
}
