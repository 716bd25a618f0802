// What can be set in a view that trains, as its manifest says it: controls with their stops and limits, presets, and
// which graphs there are.

/**
 * @typedef {Record<string, number | string>} Values  the value of each control, and the name of the preset
 * @typedef {[string, number | string]} Stop  its text and its value
 */

const refuse = (what) => {
  throw new Error(`The address cannot be read: ${what}.`);
};

export class Settings {
  /** @param {object} manifest see web/manifest.py and web/wall.py */
  constructor(manifest) {
    Object.assign(this, manifest);
    this.names = Object.keys(this.headings).flatMap((group) => this[group]); // structural, live, display
    this.first = Object.keys(this.presets)[0]; // what is usual
  }

  /** @returns {Stop[]} what a control has to choose from */
  stops(name, { num_experts }) {
    const { stops, by_experts } = this.controls[name];
    return by_experts?.[num_experts] ?? stops;
  }

  /** @returns {Values} those of a preset */
  preset(name) {
    const { values } = this.presets[name];
    return Object.fromEntries([...this.names.map((each) => [each, values[each]]), ["preset", name]]);
  }

  /**
   * Read an address.
   * @param {string} address "preset=collapse&lr=0.05"
   * @returns {Values} its values; throws a sentence for whoever has opened it
   */
  parse(address) {
    const { preset = this.first, ...given } = Object.fromEntries(new URLSearchParams(address));
    if (!Object.hasOwn(this.presets, preset))
      refuse(`preset must be one of ${Object.keys(this.presets).join(", ")}, got ${preset}`);
    if (this.presets[preset].off) refuse(`the preset ${preset} is ${this.presets[preset].off}`);
    for (const name of Object.keys(given)) {
      if (Object.hasOwn(this.left_out, name)) refuse(`${name} is not in this page: ${this.left_out[name]}`);
      if (!this.names.includes(name)) refuse(`there is no control ${name}`);
    }
    let values = this.preset(preset);
    for (const name of new Set(["num_experts", ...this.names])) {
      if (name in given) values[name] = this.read(name, given[name], values);
      if (name === "num_experts") values = this.fitted(values); // it says what the others may be
    }
    return this.check(values);
  }

  /** @returns {number | string} what a text says of a control, or throws a sentence */
  read(name, text, values) {
    const { limits, is_above, allowed, most, end } = this.controls[name];
    if (most) {
      const points = text.match(/[^]{1,4}/g) ?? [];
      const isGood = (digits) => /^[0-9a-z]{4}$/.test(digits) && parseInt(digits, 36) < end;
      if (!points.every(isGood)) refuse(`${name} must be ${allowed}, got ${text.slice(0, 80)}`);
      return points.length <= most ? text : refuse(`${name} must be at most ${most}, got ${points.length}`);
    }
    if (limits) {
      const number = text.trim() === "" ? NaN : Number(text);
      const isHigh = is_above ? number > limits[0] : number >= limits[0];
      return isHigh && number <= limits[1] ? number : refuse(`${name} must be ${allowed}, got ${text}`);
    }
    const stops = this.stops(name, values).map(([, value]) => value);
    const found = stops.find((value) => String(value) === text);
    return found ?? refuse(`${name} must be one of ${stops.join(", ")}, got ${text}`);
  }

  /** @returns {string} the address of these values, without those that are the preset's: who opens it draws nothing */
  address(values) {
    const usual = this.preset(values.preset);
    const moved = this.names.filter((name) => values[name] !== usual[name] && name !== "pen");
    const isUsual = values.preset === this.first && moved.length; // without a name it is read as that
    const preset = Object.keys(this.presets).length > 1 && !isUsual ? ["preset"] : [];
    return String(new URLSearchParams([...preset, ...moved].map((name) => [name, values[name]])));
  }

  /** @returns {Values} the same where the number of experts allows them, else the nearest below, or the first */
  fitted(values) {
    const fitted = { ...values };
    for (const name of this.names.filter((each) => this.controls[each].by_experts)) {
      const stops = this.stops(name, values).map(([, value]) => value);
      if (!stops.includes(values[name]))
        fitted[name] = stops.filter((stop) => stop <= values[name]).at(-1) ?? stops[0];
    }
    return fitted;
  }

  /** @returns {Values} the fitted values; throws a sentence where there is no graph of them */
  check(values) {
    const fitted = this.fitted(values);
    if (!this.isMade(fitted)) {
      const sizes = this.graph_of.map((name) => `${this.controls[name].label} ${fitted[name]}`);
      throw new Error(`${sizes.join(", ")}: ${this.words.not_made}.`);
    }
    return fitted;
  }

  /** @returns {boolean} whether there is a graph of these values */
  isMade(values) {
    return this.graphs.includes(this.graph(values));
  }

  /** @returns {boolean[]} for which of its stops there is no graph beside the other values */
  notMade(name, values) {
    const isLacking = ([, stop]) => !this.isMade(this.fitted({ ...values, [name]: stop }));
    return this.graph_of.includes(name) ? this.stops(name, values).map(isLacking) : [];
  }

  /** @returns {string} the name of the graph of these values, as `graph_name` in web/manifest.py has it */
  graph(values) {
    return this.graph_of.map((name) => String(values[name]).replaceAll(" ", "-")).join("-");
  }

  /** @returns {Record<string, string>} why controls are off with these values, by name */
  why(values) {
    return { ...this.idle[values.router], ...(values.points && this.words.own.idle) };
  }

  /** @returns {Values} the same, with the knobs off that the router has no use for */
  inForce(values) {
    const why = this.why(values);
    const off = this.live.filter((name) => name in why).map((name) => [name, this.controls[name].off]);
    return {
      ...values,
      ...Object.fromEntries(off),
      ...(values.points && { router_start: this.words.own.start }),
    };
  }

  /** @returns {string} a program of PyTorch with these values, as `as_pytorch` in moe_lessons/training writes it */
  code(values) {
    const said = Object.fromEntries(
      Object.entries(this.inForce(values)).map(([name, value]) => [name, String(value)]),
    );
    said.capacity_factor ??= "none";
    if (said.points) said.task = "points";
    const holds = ([name, isIn, texts]) => texts.includes(said[name]) === isIn;
    const stays = ([when]) => !when.length || when.some((tests) => tests.every(holds));
    const text = this.code_of.parts.filter(stays).map(([, part]) => part);
    return text.join("").replace(/\$(\w+)/g, (_, name) => said[name]);
  }

  /** @returns {{restart: boolean, knob: boolean}} what other values ask of a training, as `Spec.changes` says it */
  changes(before, now) {
    const { structural, live } = this;
    return { restart: !this.isSame(before, now, structural), knob: !this.isSame(before, now, live) };
  }

  /** @returns {boolean} whether the values of some names are the same */
  isSame(one, other, names) {
    return names.every((name) => one[name] === other[name]);
  }
}
