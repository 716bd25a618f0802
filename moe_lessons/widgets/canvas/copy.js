// Gives a text to whoever asks for it: in the clipboard or, where a browser does not allow that, as a file.

/**
 * @param {string} text what is given
 * @param {string} name of the file
 * @returns {Promise<string>} a sentence that says where it is
 */
export async function copyOrSave(text, name) {
  const size = `${text.split("\n").length - 1} lines of PyTorch`;
  try {
    await navigator.clipboard.writeText(text);
    return `Copied: ${size}. Save them as ${name}, and run: python ${name}`;
  } catch {
    const href = URL.createObjectURL(new Blob([text], { type: "text/x-python" }));
    Object.assign(document.createElement("a"), { href, download: name }).click();
    setTimeout(() => URL.revokeObjectURL(href), 60_000);
    return `Saved: ${size}, in the downloads of this browser. Run: python ${name}`;
  }
}
