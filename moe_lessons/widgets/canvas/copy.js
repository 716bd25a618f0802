// Gives a text to whoever asks for it: in the clipboard or, where a browser does not allow that, as a file.

export const GIVEN = 15_000; // milliseconds for which it is said where a text is
const ANSWERED = 2000; // milliseconds for which a button says so

/**
 * Have a button say something, for a while.
 * @param {?HTMLElement} button which was pressed
 * @param {string} text what it says
 */
export function sayOn(button, text) {
  if (!button) return;
  button.dataset.usual ??= button.textContent;
  const { width } = button.getBoundingClientRect();
  Object.assign(button.style, { boxSizing: "border-box", width: `${width}px`, paddingInline: 0 }); // what follows stays
  button.textContent = text;
  setTimeout(() => {
    Object.assign(button.style, { width: "", paddingInline: "" });
    button.textContent = button.dataset.usual;
  }, ANSWERED);
}

/**
 * @param {string} text what is given
 * @param {string} name of the file
 * @param {?HTMLElement} [button] which was pressed
 * @returns {Promise<string>} a sentence that says where it is
 */
export async function copyOrSave(text, name, button) {
  const size = `${text.split("\n").length - 1} lines of PyTorch`;
  try {
    await navigator.clipboard.writeText(text);
    sayOn(button, "Copied");
    return `Copied: ${size}. Save them as ${name}, and run: python ${name}`;
  } catch {
    const href = URL.createObjectURL(new Blob([text], { type: "text/x-python" }));
    Object.assign(document.createElement("a"), { href, download: name }).click();
    sayOn(button, "Saved");
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    return `Saved: ${size}, in the downloads of this browser. Run: python ${name}`;
  }
}
