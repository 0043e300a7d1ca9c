// What the pages have in common.
const $ = id => document.getElementById(id);
const text = $('data').textContent;
const data = JSON.parse(text);

const length = T => T >= 1048576 && T % 1048576 === 0 ? T / 1048576 + 'M' : T >= 1024 && T % 1024 === 0 ? T / 1024 + 'k' : String(T);
function make(name, attributes, ...children) {
  const svg = /^(svg|g|path|line|rect|text|title)$/.test(name);
  const element = svg ? document.createElementNS('http://www.w3.org/2000/svg', name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes || {})) element.setAttribute(key, value);
  element.append(...children);
  return element;
}
const row = (cells, attributes) => make('tr', attributes, ...cells);
const head = texts => make('thead', {}, row(texts.map(t => make('th', {scope: 'col'}, t))));
function about(pairs) {
  for (const [term, value] of pairs) $('about').append(make('dt', {}, term), make('dd', {}, value));
}

$('download').href = URL.createObjectURL(new Blob([text], {type: 'application/json'}));
