// How the pack's parts of the page look: in the page's own colours, dark or light. Each part's rules hold inside it only.

const VIEWS = `
:is(.kiln-run, .kiln-comparison) {
  --kiln-idle: #8a8f98; --kiln-busy: #3b9ede; --kiln-good: #3fae74; --kiln-wait: #d9a13b; --kiln-bad: #e0605c;
  --kiln-state: var(--kiln-idle);
  display: flex; flex-direction: column; gap: 5px; width: 100%; height: 100%; box-sizing: border-box; overflow: hidden;
  container-type: inline-size; font: 12px/1.35 Inter, system-ui, sans-serif; color: var(--input-text);
  font-variant-numeric: tabular-nums; text-align: left; cursor: default;

  & [hidden] { display: none !important; }
  &[data-state=preparing] { --kiln-state: var(--kiln-busy); }
  &[data-state=training] { --kiln-state: var(--kiln-busy); }
  &[data-state=paused], &[data-state=interrupted] { --kiln-state: var(--kiln-wait); }
  &[data-state=finished] { --kiln-state: var(--kiln-good); }
  &[data-state=failed] { --kiln-state: var(--kiln-bad); }

  .kiln-head { display: flex; flex-wrap: wrap; align-items: center; gap: 2px 8px; }
  .kiln-chip {
    padding: 1px 8px; border-radius: 9px; font-weight: 600; white-space: nowrap;
    background: color-mix(in srgb, var(--kiln-state) 22%, transparent);
    box-shadow: inset 0 0 0 1px color-mix(in srgb, var(--kiln-state) 60%, transparent);
  }
  .kiln-facts { color: var(--descrip-text); }
  .kiln-bar { flex: none; height: 4px; border-radius: 2px; background: var(--border-color); overflow: hidden; }
  .kiln-bar > div { height: 100%; border-radius: 2px; background: var(--kiln-state); }
  .kiln-message {
    flex: 0 1 auto; min-height: 1.35em; max-height: 6.75em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
    color: var(--descrip-text); user-select: text; cursor: text;
  }
  &[data-state=failed] .kiln-message {
    color: var(--input-text); max-height: 10.8em; padding-left: 8px; border-left: 3px solid var(--kiln-bad);
  }

  .kiln-controls, .kiln-tabs, .kiln-tools, .kiln-line { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; flex: none; }
  .kiln-button {
    font: inherit; font-size: 11px; color: var(--input-text); background: var(--comfy-input-bg);
    border: 1px solid var(--border-color); border-radius: 5px; padding: 1px 7px; cursor: pointer; white-space: nowrap;
  }
  .kiln-button:hover:enabled { border-color: var(--descrip-text); }
  .kiln-button:disabled { opacity: 0.45; cursor: default; }
  & :focus-visible { outline: 2px solid #3b9ede; outline-offset: -2px; }
  .kiln-tabs { row-gap: 2px; column-gap: 0; }
  .kiln-tab, .kiln-toggle { padding: 1px 6px; background: none; border-color: transparent; color: var(--descrip-text); }
  .kiln-tab[aria-pressed=true], .kiln-toggle[aria-pressed=true] { color: var(--input-text); background: var(--comfy-input-bg); border-color: var(--border-color); }
  .kiln-tools { margin-left: auto; gap: 0; font-size: 11px; color: var(--descrip-text); }
  .kiln-tools label { display: flex; align-items: center; gap: 5px; }
  .kiln-tools output { min-width: 2.6em; }
  .kiln-slider { appearance: none; width: 60px; height: 4px; margin: 0; border-radius: 2px; background: var(--border-color); cursor: pointer; }
  .kiln-slider::-webkit-slider-thumb { appearance: none; width: 12px; height: 12px; border-radius: 50%; background: #e8862e; }
  .kiln-slider::-moz-range-thumb { width: 12px; height: 12px; border: 0; border-radius: 50%; background: #e8862e; }
  &:not([data-tab=loss]) .kiln-tools { display: none; }

  .kiln-panels { flex: 1 1 0; min-height: 100px; display: flex; flex-direction: column; gap: 5px; }
  .kiln-panels > * { display: none; flex: 1; min-height: 0; }
  .kiln-panels > .kiln-open { display: flex; flex-direction: column; }
  &.kiln-tall.kiln-has-samples[data-tab=loss] .kiln-samples { display: flex; flex: 0 1 auto; max-height: 45%; }
  &[data-tab=loss] .kiln-thumbnail { height: 64px; }
  .kiln-chart { position: relative; }
  .kiln-chart canvas { flex: 1; min-height: 0; width: 100%; border-radius: 6px; cursor: crosshair; touch-action: none; }
  .kiln-legend {
    position: absolute; inset: 3px 8px auto 44px; display: flex; flex-wrap: wrap; gap: 0 9px; font-size: 11px; pointer-events: none;
  }
  .kiln-chart-hint { position: absolute; inset: 0; display: grid; place-items: center; text-align: center; color: var(--descrip-text); pointer-events: none; }
  .kiln-figure { white-space: nowrap; border-radius: 3px; background: color-mix(in srgb, var(--comfy-input-bg) 70%, transparent); }
  .kiln-figure[style]::before {
    content: ""; display: inline-block; width: 8px; height: 8px; margin-right: 4px; border-radius: 50%; background: var(--kiln-color);
  }
  .kiln-figure.kiln-faint::before { opacity: 0.4; }
  .kiln-figure.kiln-ring::before { background: none; box-sizing: content-box; width: 4px; height: 4px; border: 2px solid var(--kiln-color); }
  .kiln-figure[data-figure=marks] { color: var(--descrip-text); overflow: hidden; text-overflow: ellipsis; }

  .kiln-samples, .kiln-pictures, .kiln-adjust { overflow: auto; }
  .kiln-hint { color: var(--descrip-text); padding: 4px 2px; }
  .kiln-samples { flex-direction: column; gap: 6px; }
  .kiln-samples > div { flex: none; }
  .kiln-prompt { color: var(--descrip-text); white-space: nowrap; overflow: hidden; text-overflow: ellipsis; padding-bottom: 2px; }
  .kiln-strip { display: flex; flex-direction: row-reverse; gap: 4px; overflow-x: auto; scrollbar-width: thin; }
  .kiln-strip > :first-child { margin-right: auto; }
  .kiln-thumbnail {
    position: relative; flex: none; height: 84px; min-width: 48px; padding: 0; border: 0; border-radius: 5px; overflow: hidden;
    background: var(--comfy-input-bg); cursor: zoom-in;
  }
  .kiln-thumbnail img { display: block; height: 100%; }
  .kiln-thumbnail span {
    position: absolute; left: 3px; bottom: 3px; padding: 0 4px; border-radius: 3px; font: 10px/1.4 Inter, system-ui, sans-serif;
    color: #fff; background: #000a;
  }
  .kiln-sheet { flex: none; display: grid; grid-template-columns: repeat(auto-fill, minmax(76px, 1fr)); gap: 6px; }
  .kiln-card {
    display: flex; flex-direction: column; min-width: 0; padding: 0; border: 0; border-radius: 5px; overflow: hidden;
    font: inherit; color: inherit; background: var(--comfy-input-bg); cursor: zoom-in; text-align: left;
  }
  .kiln-card:disabled { cursor: default; }
  .kiln-card img, .kiln-no-picture { display: block; width: 100%; aspect-ratio: 1; object-fit: cover; background: var(--border-color); }
  .kiln-loss-bar { height: 4px; flex: none; background: var(--border-color); }
  .kiln-loss-bar > div { height: 100%; background: #e8862e; }
  .kiln-card-text { display: flex; gap: 4px; padding: 1px 4px 2px; font-size: 11px; }
  .kiln-card-text b { margin-left: auto; font-weight: 600; }
  .kiln-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; color: var(--descrip-text); }
  .kiln-adjust { gap: 5px; }
  .kiln-adjust .kiln-line > span { color: var(--descrip-text); }
  .kiln-input {
    font: inherit; color: var(--input-text); background: var(--comfy-input-bg); border: 1px solid var(--border-color);
    border-radius: 5px; padding: 1px 6px; box-sizing: border-box;
  }
  textarea.kiln-input { flex: 1; min-height: 48px; resize: none; padding: 4px 6px; }
  .kiln-wrong { border-color: #e0605c; }
  .kiln-adjust .kiln-problem { color: var(--error-text, #e0605c); }

  @container (max-width: 300px) {
    .kiln-tools { margin-left: 0; }
    .kiln-controls .kiln-button { padding: 1px 5px; }
  }

  &.kiln-comparison { gap: 6px; }
  .kiln-comparison-sheet {
    flex: 1; min-height: 0; overflow: auto; display: grid; gap: 4px; align-content: start;
    grid-template-columns: repeat(var(--kiln-columns), minmax(64px, 1fr));
  }
  .kiln-comparison-sheet.kiln-named { grid-template-columns: max-content repeat(var(--kiln-columns), minmax(64px, 1fr)); }
  &.kiln-comparison .kiln-prompt { min-height: calc(1.35em + 4px); grid-column: 1 / -1; padding: 4px 0 0; position: sticky; left: 0; }
  .kiln-strength { text-align: center; font-weight: 600; }
  .kiln-step { align-self: center; padding-right: 4px; color: var(--descrip-text); white-space: nowrap; }
  .kiln-comparison-cell { position: relative; min-width: 0; }
  .kiln-choice { display: block; width: 100%; padding: 0; border: 0; border-radius: 5px; overflow: hidden; background: var(--comfy-input-bg); cursor: pointer; }
  .kiln-choice img { display: block; width: 100%; height: auto; }
  &.kiln-old .kiln-comparison-sheet { opacity: 0.4; }
  .kiln-choice:hover { box-shadow: 0 0 0 1px var(--descrip-text); }
  .kiln-choice[aria-pressed=true] { box-shadow: 0 0 0 2px var(--kiln-good); }
  .kiln-choice[aria-pressed=true]::after {
    content: "✓"; position: absolute; left: 4px; top: 4px; width: 16px; height: 16px; border-radius: 50%; font: 600 11px/16px Inter, sans-serif;
    color: #fff; background: var(--kiln-good);
  }
  .kiln-large { position: absolute; right: 4px; bottom: 4px; padding: 0 5px; opacity: 0; }
  .kiln-comparison-cell:hover .kiln-large, .kiln-large:focus-visible { opacity: 1; }

  @media (prefers-reduced-motion: no-preference) {
    .kiln-bar > div { transition: width 0.3s; }
    &[data-state=preparing] .kiln-chip { animation: kiln-pulse 2s ease-in-out infinite; }
  }
}
@keyframes kiln-pulse { 50% { opacity: 0.65; } }
`;

const OVERLAY = `
.kiln-saved {
  font: 12px/1.35 Inter, system-ui, sans-serif; color: var(--descrip-text); overflow: auto; overflow-wrap: anywhere;
  white-space: pre-line; user-select: text; cursor: text;
}
.kiln-overlay {
  width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; padding: 0; border: 0; box-sizing: border-box;
  background: #000e; color: #eee; font: 14px/1.4 Inter, system-ui, sans-serif;

  & :focus-visible { outline: 2px solid #3b9ede; outline-offset: -2px; }
  &[open] { display: flex; flex-direction: column; }
  &::backdrop { background: none; }
  .kiln-overlay-stage { flex: 1; min-height: 0; display: flex; align-items: center; justify-content: center; gap: 16px; padding: 20px; }
  .kiln-overlay-stage img { flex: 1; min-width: 0; height: 100%; object-fit: contain; }
  .kiln-overlay-caption { display: flex; align-items: center; gap: 16px; padding: 0 24px 20px; }
  .kiln-overlay-title { flex: 1; max-height: 6em; overflow: auto; overflow-wrap: anywhere; user-select: text; }
  .kiln-overlay-detail { color: #bbb; white-space: nowrap; font-variant-numeric: tabular-nums; }
  .kiln-button {
    font: inherit; color: #eee; background: #333; border: 1px solid #555; border-radius: 5px; padding: 4px 12px; cursor: pointer;
  }
  .kiln-button:disabled { opacity: 0.45; cursor: default; }
  .kiln-arrow { font-size: 28px; line-height: 1; padding: 8px 14px; }
}
`;

const DATASET = `
:is(.kiln-dataset, .kiln-editor) {
  font: 12px/1.4 Inter, system-ui, sans-serif; color: var(--input-text, #ddd);

  &.kiln-dataset { display: flex; flex-direction: column; gap: 6px; width: 100%; height: 100%; box-sizing: border-box;
    border-radius: 6px; pointer-events: auto; }
  & [hidden] { display: none !important; }
  &.kiln-drop { outline: 2px dashed #f2a65a; outline-offset: -2px; }
  .kiln-bar { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
  .kiln-button { font: inherit; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222); cursor: pointer;
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px; padding: 3px 9px; white-space: nowrap; }
  .kiln-button:hover:not(:disabled), .kiln-button:focus-visible { border-color: #f2a65a; outline: none; }
  .kiln-button:disabled { opacity: 0.45; cursor: default; }
  .kiln-main { background: #f2a65a; border-color: #f2a65a; color: #1b1b1b; font-weight: 600; }
  & :is(input:not([type]), input[type=text], select, textarea) {
    font: inherit; color: var(--input-text, #ddd); background: var(--comfy-input-bg, #222);
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 5px; padding: 4px 7px; min-width: 0; box-sizing: border-box; }
  & :is(input, textarea, select):focus {
    outline: none; border-color: #f2a65a; }
  .kiln-upload { display: flex; flex-direction: column; gap: 5px; padding: 7px; border: 1px solid #f2a65a; border-radius: 6px; }
  .kiln-upload input { flex: 1; }
  .kiln-upload progress { width: 100%; accent-color: #f2a65a; }
  .kiln-status, .kiln-meta, .kiln-faint { color: var(--descrip-text, #999); }
  .kiln-notice { color: var(--error-text, #ff6b6b); white-space: pre-line; overflow-wrap: anywhere; max-height: 8em; overflow: auto; }
  .kiln-hint { grid-column: 1 / -1; text-align: center; color: var(--descrip-text, #999); padding: 28px 12px; }
  .kiln-sheet { flex: 1 1 0; min-height: 110px; overflow: auto; display: grid; align-content: start; gap: 8px;
    grid-template-columns: repeat(auto-fill, minmax(104px, 1fr)); padding: 6px; border-radius: 6px;
    background: var(--comfy-input-bg, #222); outline: none; scrollbar-width: thin; }
  .kiln-card { display: flex; flex-direction: column; gap: 3px; min-width: 0; content-visibility: auto;
    contain-intrinsic-size: auto 150px; }
  .kiln-sheet .kiln-card { cursor: pointer; border-radius: 5px; }
  .kiln-sheet .kiln-card:hover .kiln-frame, .kiln-sheet .kiln-card:focus-visible .kiln-frame { outline: 1px solid #f2a65a; }
  .kiln-card:focus-visible { outline: none; }
  .kiln-sheet { --kiln-side: 104px; }
  .kiln-cards { --kiln-side: 200px; }
  .kiln-frame { height: var(--kiln-side); display: flex; align-items: center; justify-content: center; border-radius: 4px;
    background: color-mix(in srgb, var(--fg-color, #fff) 7%, transparent); overflow: hidden; }
  .kiln-picture { position: relative; overflow: hidden; }
  .kiln-picture img { display: block; width: 100%; height: 100%; object-fit: fill; }
  .kiln-cut { position: absolute; box-shadow: 0 0 0 9999px rgb(0 0 0 / 0.55); outline: 1px solid #f2a65a; outline-offset: -1px; }
  .kiln-text { display: -webkit-box; -webkit-line-clamp: 2; -webkit-box-orient: vertical; overflow: hidden; overflow-wrap: anywhere; }
  .kiln-meta { font-size: 11px; display: flex; flex-wrap: wrap; gap: 2px 5px; align-items: center; }
  .kiln-mark { border-radius: 3px; padding: 0 4px; background: #f2a65a; color: #1b1b1b; max-width: 100%; overflow: hidden;
    text-overflow: ellipsis; white-space: nowrap; }
  .kiln-mark.kiln-unsaved { background: #6aa5ff; }
  .kiln-problems { color: var(--descrip-text, #999); }
  .kiln-problems summary { cursor: pointer; color: var(--error-text, #ff6b6b); }
  .kiln-problems ul { margin: 4px 0 0; padding-left: 18px; max-height: 110px; overflow: auto; overflow-wrap: anywhere; }
  .kiln-save { display: flex; flex-wrap: wrap; gap: 6px; align-items: center; }
  .kiln-save .kiln-dot { color: #6aa5ff; font-weight: 600; }
  .kiln-save .kiln-notice { flex-basis: 100%; }
  &.kiln-editor { width: min(1500px, 96vw); height: 94vh; max-width: none; max-height: none; padding: 0; overflow: hidden;
    border: 1px solid var(--border-color, #4e4e4e); border-radius: 10px; background: var(--comfy-menu-bg, #353535); }
  &.kiln-editor::backdrop { background: rgb(0 0 0 / 0.6); }
  &.kiln-editor[open] { display: flex; flex-direction: column; }
  .kiln-head { display: flex; flex-wrap: wrap; gap: 8px 14px; align-items: center; padding: 10px 14px;
    border-bottom: 1px solid var(--border-color, #4e4e4e); }
  .kiln-head h2 { font-size: 15px; font-weight: 600; margin: 0; overflow: hidden; text-overflow: ellipsis; }
  .kiln-head .kiln-bar input[type=text] { width: 150px; }
  .kiln-space { flex: 1; }
  .kiln-body { flex: 1; min-height: 0; display: flex; }
  .kiln-cards { flex: 1; overflow: auto; display: grid; align-content: start; gap: 16px 14px; padding: 14px; outline: none;
    grid-template-columns: repeat(auto-fill, minmax(230px, 1fr)); }
  .kiln-cards .kiln-card { contain-intrinsic-size: auto 330px; }
  .kiln-cards textarea { width: 100%; resize: vertical; min-height: 74px; line-height: 1.4; }
  .kiln-name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  .kiln-tags { width: 240px; flex: none; overflow: auto; padding: 12px; border-left: 1px solid var(--border-color, #4e4e4e); }
  .kiln-tags h3 { font-size: 13px; margin: 0 0 8px; font-weight: 600; }
  .kiln-tag { display: flex; gap: 4px; align-items: center; border-radius: 4px; }
  .kiln-tag button { font: inherit; color: inherit; background: none; border: 0; padding: 3px 5px; cursor: pointer; border-radius: 4px; }
  .kiln-tag button:hover, .kiln-tag button:focus-visible { background: var(--comfy-input-bg, #222); outline: none; }
  .kiln-tag button:first-child { flex: 1; min-width: 0; text-align: left; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
  .kiln-tag.kiln-on button:hover, .kiln-tag.kiln-on button:focus-visible { background: rgb(255 255 255 / 0.35); }
  .kiln-tag.kiln-on { background: #f2a65a; color: #1b1b1b; }
  @media (max-width: 760px) {
    .kiln-body { flex-direction: column-reverse; }
    .kiln-tags { width: auto; max-height: 22vh; border-left: 0; border-bottom: 1px solid var(--border-color, #4e4e4e); }
  }
}
`;

const ID = "kiln-style";

/** Adds the style to the page, once. */
export function addStyle() {
  if (document.getElementById(ID)) return;
  const style = document.createElement("style");
  style.id = ID;
  style.textContent = VIEWS + OVERLAY + DATASET;
  document.head.append(style);
}
