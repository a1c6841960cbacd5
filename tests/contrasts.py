"""Contrast of text on a page, measured in the browser that shows it."""

#: Script; its argument is a selector. The three lowest contrasts of words inside it with the nearest ground behind them
#: that is not transparent, each with the words.
CONTRASTS = """
const parse = c => (c.match(/[\\d.]+/g) || []).map(Number);
const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
  .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const ground = e => {
  for (; e; e = e.parentElement) {
    const c = parse(getComputedStyle(e).backgroundColor);
    if (c.length === 3 || c[3] === 1) return c;
  }
};
const found = [];
for (const part of document.querySelectorAll(arguments[0])) {
  const walk = document.createTreeWalker(part, NodeFilter.SHOW_TEXT);
  while (walk.nextNode()) {
    const e = walk.currentNode.parentElement;
    if (!walk.currentNode.data.trim() || e.closest("script, svg")) continue;
    const [low, high] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((a, b) => a - b);
    found.push([(high + 0.05) / (low + 0.05), walk.currentNode.data.trim().slice(0, 40)]);
  }
}
return found.sort((a, b) => a[0] - b[0]).slice(0, 3);
"""
