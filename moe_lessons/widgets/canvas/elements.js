// Elements of the page.

/**
 * Make an element; texts become text nodes, never HTML.
 * @param {string} tag its kind
 * @param {string} name its class; "": none
 * @param {...(Node | string)} children what is in it
 * @returns {HTMLElement} the element
 */
export function make(tag, name = "", ...children) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  element.append(...children);
  return element;
}

/**
 * Set attributes, where they are others: to set one may cost a layout.
 * @template {Element} T
 * @param {T} element which has them
 * @param {Record<string, unknown>} attributes by their names
 * @returns {T} the element
 */
export function set(element, attributes) {
  for (const [name, value] of Object.entries(attributes)) {
    if (element.getAttribute(name) !== String(value)) element.setAttribute(name, value);
  }
  return element;
}

/**
 * @template {HTMLElement} T
 * @param {T} element which is to look so
 * @param {Partial<CSSStyleDeclaration>} style its style
 * @returns {T} the element
 */
export function styled(element, style) {
  Object.assign(element.style, style);
  return element;
}

/**
 * Change the text of an element, if it is another.
 * @param {Element} element which has it
 * @param {string} text the new one
 */
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}
