// The images by class, beside the one that is drawn on: how far each class has come, and thumbnails of the open one.

const MARKS = { open: "", outlined: "✓", no_foreground: "∅", skipped: "⤼" };
export const WORDS = { open: "left to do", outlined: "outlined", no_foreground: "no foreground", skipped: "skipped" };
export const isDone = (image) => image.state === "outlined" || image.state === "no_foreground";

function made(tag, attributes = {}, text = "") {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text) element.textContent = text; // never markup: names come from files
  return element;
}

export class Overview {
  constructor(list, images, go) {
    this.list = list;
    this.images = images;
    this.go = go;
    this.groups = new Map();
    images.forEach((image, index) => {
      if (!this.groups.has(image.label)) this.groups.set(image.label, []);
      this.groups.get(image.label).push(index);
    });
    this.rows = new Map([...this.groups].map(([label, members]) => [label, this.row(label, members)]));
    list.replaceChildren(...[...this.rows.values()].map((row) => row.item));
    this.cells = new Map();
  }

  row(label, members) {
    const item = made("li");
    const head = made("button", { type: "button", class: "class", "aria-expanded": "false" });
    const count = made("span", { class: "count" });
    const bar = made("progress", { max: members.length, value: 0, "aria-hidden": "true" });
    head.append(made("span", { class: "label" }, label), count, bar);
    const cells = made("div", { class: "cells" });
    item.append(head, cells);
    head.addEventListener("click", () => {
      this.go(members.find((index) => this.images[index].state === "open") ?? members[0]);
    });
    return { item, head, count, bar, cells };
  }

  /** Show the image that is drawn on: its class opens, the others close. */
  show(current) {
    this.current = current;
    const label = this.images[current].label;
    for (const [name, row] of this.rows) {
      const open = name === label;
      row.head.setAttribute("aria-expanded", String(open));
      if (!open) row.cells.replaceChildren();
    }
    const row = this.rows.get(label);
    if (!row.cells.childElementCount) {
      this.cells = new Map(this.groups.get(label).map((index) => [index, this.cell(index)]));
      row.cells.replaceChildren(...this.cells.values());
    }
    this.refresh();
    this.cells.get(current).scrollIntoView({ block: "nearest" });
  }

  cell(index) {
    const button = made("button", { type: "button", class: "cell", tabindex: "-1" });
    button.append(made("img", { src: `thumbnails/${index}`, alt: "", loading: "lazy", width: 40, height: 40 }),
      made("span", { class: "mark", "aria-hidden": "true" }));
    button.addEventListener("click", () => this.go(index));
    return button;
  }

  refresh() {
    for (const [label, members] of this.groups) {
      const row = this.rows.get(label);
      const done = members.filter((index) => isDone(this.images[index])).length;
      const left = members.filter((index) => this.images[index].state === "open").length;
      row.count.textContent = `${done.toLocaleString("en")} / ${members.length.toLocaleString("en")}`;
      row.bar.value = done;
      row.head.setAttribute("aria-label", `${label}: ${done} of ${members.length} done, ${left} left`);
      row.item.classList.toggle("whole", left === 0);
    }
    for (const [index, cell] of this.cells) {
      const image = this.images[index];
      cell.dataset.state = image.state;
      cell.lastElementChild.textContent = MARKS[image.state];
      cell.title = image.name;
      cell.setAttribute("aria-label", `${image.name}, ${WORDS[image.state]}`);
      if (index === this.current) cell.setAttribute("aria-current", "true");
      else cell.removeAttribute("aria-current");
    }
  }
}
