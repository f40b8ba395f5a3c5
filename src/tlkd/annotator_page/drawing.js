// Annotorious on one image: polygons in the image's own pixels, a tool to draw them, zoom, proposals.
//
// Annotorious measures some distances in pixels of its image (how near is a click?), which does not suit an image of
// 32 pixels. So it is given a canvas on which such an image is enlarged, and coordinates are converted here.

const { createImageAnnotator } = globalThis.Annotorious;

const LEAST = 1024; // pixels of the canvas' longer side
const LEAST_SHOWN = 512; // pixels of the page that the longer side spans at least, before zoom
const NEAR = 12; // pixels of the page: so near to the first point a click closes the outline
const SAME = 3; // so near to the last point it is a double click
const ZOOMS = [0.5, 1, 1.5, 2, 3, 4, 6, 8, 12, 16];

const SVG = "http://www.w3.org/2000/svg";
const bounds = (points) => {
  const xs = points.map((point) => point[0]), ys = points.map((point) => point[1]);
  return { minX: Math.min(...xs), minY: Math.min(...ys), maxX: Math.max(...xs), maxY: Math.max(...ys) };
};
const shape = (points) => ({ type: "POLYGON", geometry: { points, bounds: bounds(points) } });
const apart = (one, other) => Math.hypot(one[0] - other[0], one[1] - other[1]);

let active = null; // the tool that is mounted, if any: Annotorious makes and removes it
let annotator = null; // what it belongs to

/** A drawing tool for Annotorious: like its own for polygons, but points can be taken back. */
class PolygonTool {
  constructor({ target, props }) {
    this.props = props;
    this.points = [];
    this.heard = {};
    this.group = document.createElementNS(SVG, "g");
    this.group.setAttribute("class", "a9s-annotation draft");
    target.append(this.group);
    props.addEventListener("pointermove", (event) => this.move(event));
    props.addEventListener("pointerup", (event) => this.click(event), true);
    active = this;
  }

  $on(kind, callback) { this.heard[kind] = callback; }

  $set(props) {
    Object.assign(this.props, props);
    this.draw();
  }

  $destroy() {
    this.group.remove();
    if (active === this) active = null;
  }

  at(event) { return this.props.transform.elementToImage(event.offsetX, event.offsetY); }

  near(point, other, distance) { return apart(point, other) * this.props.viewportScale <= distance; }

  move(event) {
    this.cursor = this.at(event);
    if (this.points.length) this.draw();
  }

  click(event) {
    if (event.button !== 0) return;
    const point = this.at(event);
    if (!this.points.length && !event.shiftKey && annotator.state.store.getAt(point[0], point[1], undefined, 2)) return;
    event.stopImmediatePropagation(); // otherwise an outline under the pointer would be selected
    this.cursor = point;
    const [first, last] = [this.points[0], this.points.at(-1)];
    if (first && this.near(point, first, NEAR) && this.points.length > 2) this.close();
    else if (last && this.near(point, last, SAME)) this.close();
    else this.points.push(point);
    this.draw();
  }

  /** Make an outline of the points; whether there were enough. */
  close() {
    if (this.points.length < 3) return false;
    const points = this.points;
    this.points = [];
    this.draw();
    this.heard.create?.({ detail: shape(points) });
    return true;
  }

  begin(event) {
    if (this.points.length) return;
    this.points = [this.cursor = this.at(event)];
    this.draw();
  }

  back() {
    this.points.pop();
    this.draw();
  }

  cancel() {
    this.points = [];
    this.draw();
  }

  draw() {
    this.group.replaceChildren();
    if (!this.points.length) return;
    const all = [...this.points, this.cursor ?? this.points.at(-1)].map((point) => point.join(",")).join(" ");
    for (const kind of ["a9s-outer", "a9s-inner"]) {
      const line = document.createElementNS(SVG, "polyline");
      line.setAttribute("class", kind);
      line.setAttribute("points", all);
      this.group.append(line);
    }
    this.points.forEach(([x, y], number) => {
      const dot = document.createElementNS(SVG, "circle");
      dot.setAttribute("class", number ? "dot" : "dot first");
      dot.setAttribute("cx", x);
      dot.setAttribute("cy", y);
      dot.setAttribute("r", (number ? 3.5 : 6) / this.props.viewportScale);
      this.group.append(dot);
    });
  }
}

/** The image that is drawn on. `changed()` is called after each change by hand, `boxed(box)` for a dragged box. */
export class Drawing {
  constructor(stage, { changed, boxed, marked }) {
    Object.assign(this, { stage, changed, boxed, marked });
    this.tool = "draw";
    this.zoom = 1;
    this.count = 0;
    this.hidden = false;
    this.proposing = new Set();
    new ResizeObserver(() => this.resize()).observe(stage);
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    this.pan();
    this.goOn();
    addEventListener("pointerup", () => this.flush());
  }

  /** Show an image, `{width, height}` of its own, with its polygons. */
  show(bitmap, size, polygons) {
    this.clear();
    this.size = size;
    const factor = Math.max(1, Math.ceil(LEAST / Math.max(bitmap.width, bitmap.height)));
    const canvas = document.createElement("canvas");
    canvas.width = bitmap.width * factor;
    canvas.height = bitmap.height * factor;
    const context = canvas.getContext("2d");
    context.imageSmoothingEnabled = false;
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    this.canvas = canvas;
    this.ratio = [size.width / canvas.width, size.height / canvas.height];
    this.stage.append(canvas);
    annotator = this.annotator = createImageAnnotator(canvas, { drawingMode: "click", userSelectAction: "EDIT" });
    this.annotator.registerDrawingTool("tlkd", PolygonTool);
    this.use(this.tool === "box" ? "draw" : this.tool);
    this.annotator.setVisible(!this.hidden);
    this.annotator.state.store.observe((event) => this.observe(event), { origin: "LOCAL" });
    this.annotator.on("selectionChanged", () => this.marked());
    this.svg = this.annotator.element.querySelector("svg");
    this.svg.setAttribute("aria-label", "The image and its outlines");
    new MutationObserver(() => this.label()).observe(this.svg, { childList: true, subtree: true });
    this.zoom = 1;
    this.resize();
    this.set(polygons);
  }

  clear() {
    this.annotator?.destroy();
    this.annotator = annotator = active = null;
    this.proposing.clear();
    this.dirty = false;
    this.stage.replaceChildren();
  }

  /** What stands on the stage where no image can. */
  blank(text) {
    this.clear();
    const note = document.createElement("p");
    note.className = "blank";
    note.textContent = text;
    this.stage.append(note);
  }

  // Outlines

  set(polygons) {
    const marked = this.selected().length > 0;
    this.proposing.clear();
    this.annotator.cancelSelected();
    const annotations = polygons.map((polygon) => this.annotation(polygon, "outline"));
    this.annotator.setAnnotations(annotations, true);
    if (marked && annotations.length === 1) this.annotator.setSelected(annotations[0].id, true); // stays so over an undo
    this.dirty = false;
    this.marked();
  }

  annotation(polygon, kind) {
    const id = `${kind}-${++this.count}`;
    const points = polygon.map(([x, y]) => [x / this.ratio[0], y / this.ratio[1]]);
    return { id, bodies: [], target: { annotation: id, selector: shape(points) } };
  }

  polygons() {
    const { width, height } = this.size;
    const inside = (value, most) => Math.round(Math.min(Math.max(value, 0), most) * 100) / 100;
    return this.annotator.getAnnotations().filter((each) => !this.proposing.has(each.id)).map((each) =>
      each.target.selector.geometry.points.map(([x, y]) =>
        [inside(x * this.ratio[0], width), inside(y * this.ratio[1], height)]));
  }

  observe({ changes }) {
    for (const { id, target } of changes.created ?? []) {
      if (target.selector.type === "RECTANGLE") {
        queueMicrotask(() => this.box(id, target.selector.geometry.bounds)); // not while Annotorious is at it
        return;
      }
    }
    for (const { newValue } of changes.updated ?? []) this.proposing.delete(newValue.id); // corrected is accepted
    this.dirty = true;
    if (changes.created?.length || changes.deleted?.length) this.flush();
    else { // points that are dragged: once, when they are let go
      clearTimeout(this.timer);
      this.timer = setTimeout(() => this.flush(), 600);
    }
  }

  flush() {
    clearTimeout(this.timer);
    if (!this.dirty || !this.annotator) return;
    this.dirty = false;
    this.changed();
  }

  box(id, { minX, minY, maxX, maxY }) {
    this.annotator.cancelSelected();
    this.annotator.removeAnnotation(id);
    this.use("draw");
    this.boxed([minX * this.ratio[0], minY * this.ratio[1], maxX * this.ratio[0], maxY * this.ratio[1]]);
  }

  selected() { return this.annotator?.getSelected() ?? []; }

  /** Delete the marked outlines, or the only one; whether there was any. */
  remove() {
    const all = this.annotator.getAnnotations();
    const marked = this.selected().length ? this.selected() : all.length === 1 ? all : [];
    this.annotator.cancelSelected();
    for (const { id } of marked) {
      this.annotator.removeAnnotation(id);
      this.proposing.delete(id);
    }
    return marked.length;
  }

  // Proposals: shown, but not saved until they are accepted or corrected

  propose(polygons) {
    this.dismiss();
    this.set(this.polygons()); // what was a proposal and was corrected is an outline like others
    for (const polygon of polygons) {
      const annotation = this.annotation(polygon, "proposal");
      this.proposing.add(annotation.id);
      this.annotator.addAnnotation(annotation);
    }
    const [first] = this.proposing;
    if (first) this.annotator.setSelected(first, true);
    this.marked();
  }

  accept() {
    this.proposing.clear();
    this.set(this.polygons());
  }

  dismiss() {
    this.annotator.cancelSelected();
    for (const id of this.proposing) this.annotator.removeAnnotation(id);
    this.proposing.clear();
    this.marked();
  }

  // Tools

  use(tool) {
    this.tool = tool;
    if (!this.annotator) return;
    this.annotator.cancelSelected();
    this.annotator.setDrawingMode(tool === "box" ? "drag" : "click");
    this.annotator.setDrawingTool(tool === "box" ? "rectangle" : "tlkd");
    this.annotator.setDrawingEnabled(tool !== "select");
    this.stage.dataset.tool = tool;
  }

  /** A click beside a marked outline only unmarks it, for Annotorious; while drawing it is the next one's first point. */
  goOn() {
    let from = null;
    this.stage.addEventListener("pointerdown", (event) => {
      const beside = event.button === 0 && this.svg?.contains(event.target) && !event.target.closest(".a9s-annotation");
      const drawing = this.tool === "draw" && this.selected().length && !this.proposing.size;
      from = beside && drawing ? [event.clientX, event.clientY] : null;
    }, true);
    this.stage.addEventListener("pointerup", (event) => {
      if (!from || apart(from, [event.clientX, event.clientY]) > SAME) return;
      const { left, top } = this.svg.getBoundingClientRect();
      const place = { offsetX: event.clientX - left, offsetY: event.clientY - top };
      setTimeout(() => { if (!this.selected().length) active?.begin(place); }); // once the tool is there again
    }, true);
  }

  drafting() { return Boolean(active?.points.length); }

  close() { return Boolean(active?.close()); }

  back() { active?.back(); }

  cancel() { active?.cancel(); }

  hide(hidden) {
    this.hidden = hidden;
    this.annotator?.setVisible(!hidden);
  }

  // Points by keyboard

  handles() { return [...(this.svg?.querySelectorAll(".a9s-corner-handle .a9s-handle-buffer") ?? [])]; }

  label() {
    const handles = this.handles();
    handles.forEach((handle, number) => handle.setAttribute("aria-label", `Point ${number + 1} of ${handles.length}`));
  }

  /** Move the point that has the focus by so many pixels of the image; whether one had it. */
  nudge(dx, dy) {
    const number = this.handles().indexOf(document.activeElement);
    const [marked] = this.selected();
    if (number < 0 || !marked) return false;
    const points = marked.target.selector.geometry.points.map(([x, y], each) =>
      each === number ? [x + dx / this.ratio[0], y + dy / this.ratio[1]] : [x, y]);
    this.annotator.state.store.updateTarget({ ...marked.target, selector: shape(points) }); // as if by hand
    return true;
  }

  // Zoom

  /** How many pixels of the page one of the image spans at zoom 1; whole where it is enlarged. */
  base() {
    const { width, height } = this.size;
    const fitting = Math.min((this.stage.clientWidth - 24) / width, (this.stage.clientHeight - 24) / height);
    const least = LEAST_SHOWN / Math.max(width, height);
    return fitting >= 1 || least >= 1 ? Math.max(Math.floor(fitting), Math.ceil(least)) : fitting;
  }

  resize() {
    if (!this.annotator) return;
    const scale = this.base() * this.zoom;
    this.canvas.style.width = `${this.size.width * scale}px`;
    this.canvas.style.height = `${this.size.height * scale}px`;
    this.canvas.classList.toggle("pixelated", scale > 1);
    this.zoomed?.(this.zoom);
  }

  /** One step in or out, keeping what lies under the pointer, or in the middle, where it is. */
  step(direction, at) {
    if (!this.annotator) return;
    const next = direction > 0 ? ZOOMS.find((each) => each > this.zoom) : ZOOMS.findLast((each) => each < this.zoom);
    if (next) this.zoomTo(next, at);
  }

  zoomTo(zoom, at) {
    const stage = this.stage.getBoundingClientRect();
    const [x, y] = at ?? [stage.left + stage.width / 2, stage.top + stage.height / 2];
    const before = this.canvas.getBoundingClientRect();
    const place = [(x - before.left) / before.width, (y - before.top) / before.height];
    this.zoom = zoom;
    this.resize();
    const after = this.canvas.getBoundingClientRect();
    this.stage.scrollLeft += after.left + place[0] * after.width - x;
    this.stage.scrollTop += after.top + place[1] * after.height - y;
  }

  wheel(event) {
    event.preventDefault();
    this.turned = (this.turned ?? 0) + event.deltaY;
    if (Math.abs(this.turned) < 40) return; // a touch pad turns in small steps
    this.step(-this.turned, [event.clientX, event.clientY]);
    this.turned = 0;
  }

  pan() {
    let from = null;
    this.stage.addEventListener("pointerdown", (event) => {
      if (event.button !== 1 && !this.stage.classList.contains("pans")) return;
      event.preventDefault();
      event.stopPropagation();
      from = [event.clientX + this.stage.scrollLeft, event.clientY + this.stage.scrollTop];
      this.stage.setPointerCapture(event.pointerId);
    }, true);
    this.stage.addEventListener("pointermove", (event) => {
      if (!from) return;
      this.stage.scrollLeft = from[0] - event.clientX;
      this.stage.scrollTop = from[1] - event.clientY;
    });
    this.stage.addEventListener("pointerup", (event) => {
      if (!from) return;
      event.stopPropagation();
      from = null;
    }, true);
  }
}
