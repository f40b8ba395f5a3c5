// What the page says to the server: images are fetched, changes are saved one after the other and none is dropped.

const RETRY = 1500; // milliseconds until a save that failed is tried again
const POLL = 2000; // and between two looks at what others have changed

export class Problem extends Error {
  constructor(status, body) {
    super(body.reason || `the server says ${status}`);
    this.status = status;
    this.body = body;
  }
}

export async function ask(path, method = "GET", body = undefined) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: body === undefined ? {} : { "Content-Type": "application/json" },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem(0, { reason: "the server is gone" });
  }
  const text = await answer.text();
  let found;
  try {
    found = JSON.parse(text);
  } catch {
    found = { reason: text.trim() };
  }
  if (!answer.ok) throw new Problem(answer.status, found);
  return found;
}

/** The entries of images as the server knows them, and the changes that are on their way to it. */
export class Desk extends EventTarget {
  constructor() {
    super();
    this.clock = 0;
    this.entries = new Map(); // image -> its entry as the server last said
    this.wanted = new Map(); // image -> what it shall be, not saved yet
    this.flying = new Set(); // images whose save is under way
    this.gone = false;
    this.outside = null;
  }

  tell(kind, detail) {
    this.dispatchEvent(new CustomEvent(kind, { detail }));
  }

  async open() {
    const overview = await ask("api/overview");
    this.take(overview);
    setTimeout(() => this.watch(), POLL);
    return overview;
  }

  take(overview) {
    this.images = overview.images;
    this.clock = overview.clock;
    this.notice(overview.outside);
  }

  async entry(index) {
    const found = await this.look(index);
    if (!this.wanted.has(index)) this.entries.set(index, found); // otherwise what is wanted was made from an earlier one
    return { ...found, ...(this.wanted.get(index) || {}) };
  }

  /** An image as the server has it, not taken over: changes are still made to the one that was. */
  look(index) {
    return ask(`api/images/${index}`);
  }

  suggest(index, box) {
    return ask(`api/images/${index}/suggestion`, "POST", { box });
  }

  async reload() {
    const overview = await ask("api/reload", "POST", {});
    this.take(overview);
    return overview;
  }

  /** Save what an image shall be: state, polygons, uncertain. */
  save(index, change) {
    this.wanted.set(index, change);
    this.images[index].state = change.state;
    this.tell("saving");
    this.send(index);
  }

  async send(index) {
    if (this.flying.has(index) || !this.wanted.has(index)) return;
    this.flying.add(index);
    const change = this.wanted.get(index);
    let again = 0;
    try {
      const revision = this.entries.get(index).revision;
      this.settle(index, change, await ask(`api/images/${index}`, "PUT", { ...change, revision }));
    } catch (problem) {
      again = this.refused(index, change, problem);
    }
    this.flying.delete(index);
    if (this.wanted.has(index) && again !== null) setTimeout(() => this.send(index), again);
    if (!this.wanted.size) this.tell("saved");
  }

  settle(index, change, entry) {
    this.entries.set(index, { ...this.entries.get(index), ...entry });
    this.images[index].revision = entry.revision;
    if (this.wanted.get(index) === change) this.wanted.delete(index);
    this.back();
  }

  /** What becomes of a change that was refused: milliseconds until the next try, null for never. */
  refused(index, change, problem) {
    const { status, body } = problem;
    if (status === 409 && body.kind === "outside") { // kept in another file: as good as saved
      this.settle(index, change, body.current);
      this.notice(body.outside);
      return 0;
    }
    if (status === 409 && body.kind === "stale") {
      if (this.wanted.get(index) === change) { // otherwise the newer change is sent, and merged, next
        const { state, polygons, uncertain } = body.merged;
        this.entries.set(index, { ...this.entries.get(index), ...body.current });
        this.wanted.set(index, { state, polygons, uncertain });
        this.images[index].state = state;
        this.tell("merged", { index, entry: body.merged });
      }
      return 0;
    }
    this.lost(problem);
    this.tell("unsaved", { index, reason: problem.message });
    return status === 0 || status === 507 || status === 410 ? RETRY : null;
  }

  lost(problem) {
    if (problem.status !== 0 && problem.status !== 403) return;
    if (!this.gone) this.tell("gone");
    this.gone = true;
  }

  back() {
    if (this.gone) this.tell("back");
    this.gone = false;
  }

  notice(outside) {
    if (JSON.stringify(outside) === JSON.stringify(this.outside)) return;
    this.outside = outside;
    this.tell("outside", outside);
  }

  /** Look now and then at what other tabs have done, and whether the server and the file are still there. */
  async watch() {
    try {
      const found = await ask(`api/changes?since=${this.clock}`);
      this.back();
      this.clock = found.clock;
      for (const [key, brief] of Object.entries(found.images)) {
        const index = Number(key);
        const known = this.entries.get(index);
        if (!this.wanted.has(index)) this.images[index].state = brief.state;
        this.images[index].revision = brief.revision;
        if (known && known.revision < brief.revision && !this.wanted.has(index)) this.tell("changed", index);
      }
      this.notice(found.outside);
      this.tell("progress");
    } catch (problem) {
      this.lost(problem);
    }
    setTimeout(() => this.watch(), POLL);
  }

  /** What is not saved yet, as COCO: for the person to keep where no server is left. */
  unsaved() {
    const images = [], annotations = [], categories = [...new Set(this.images.map((image) => image.label))]
      .map((name, number) => ({ id: number + 1, name }));
    for (const [index, change] of this.wanted) {
      const { width, height } = this.entries.get(index);
      images.push({ id: index + 1, file_name: this.images[index].name, width, height, tlkd: { state: change.state } });
      for (const polygon of change.polygons) {
        annotations.push({ id: annotations.length + 1, image_id: index + 1, iscrowd: 0,
          category_id: categories.find((each) => each.name === this.images[index].label).id,
          segmentation: [polygon.flat()], attributes: { uncertain: change.uncertain } });
      }
    }
    return JSON.stringify({ images, annotations, categories }, null, 1);
  }
}
