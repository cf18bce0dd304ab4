// How the pack's parts of the page look: in the page's own colours, dark or light.

const CSS = `
.kiln-run {
  --kiln-idle: #8a8f98; --kiln-busy: #3b9ede; --kiln-good: #3fae74; --kiln-wait: #d9a13b; --kiln-bad: #e0605c;
  --kiln-state: var(--kiln-idle);
  display: flex; flex-direction: column; gap: 5px; width: 100%; height: 100%; box-sizing: border-box; overflow: hidden;
  container-type: inline-size; font: 12px/1.35 Inter, system-ui, sans-serif; color: var(--input-text);
  font-variant-numeric: tabular-nums; text-align: left; cursor: default;
}
.kiln-run [hidden] { display: none !important; }
.kiln-run[data-state=preparing] { --kiln-state: var(--kiln-busy); }
.kiln-run[data-state=training] { --kiln-state: var(--kiln-busy); }
.kiln-run[data-state=paused], .kiln-run[data-state=interrupted] { --kiln-state: var(--kiln-wait); }
.kiln-run[data-state=finished] { --kiln-state: var(--kiln-good); }
.kiln-run[data-state=failed] { --kiln-state: var(--kiln-bad); }

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
  flex: 0 1 auto; min-height: 1.35em; max-height: 4.2em; overflow: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--descrip-text); user-select: text; cursor: text;
}
.kiln-run[data-state=failed] .kiln-message {
  color: var(--input-text); max-height: 8.4em; padding-left: 8px; border-left: 3px solid var(--kiln-bad);
}

.kiln-controls, .kiln-tabs, .kiln-tools, .kiln-line { display: flex; flex-wrap: wrap; align-items: center; gap: 4px; flex: none; }
.kiln-button {
  font: inherit; font-size: 11px; color: var(--input-text); background: var(--comfy-input-bg);
  border: 1px solid var(--border-color); border-radius: 5px; padding: 1px 7px; cursor: pointer; white-space: nowrap;
}
.kiln-button:hover:enabled { border-color: var(--descrip-text); }
.kiln-button:disabled { opacity: 0.45; cursor: default; }
.kiln-run :focus-visible, .kiln-overlay :focus-visible { outline: 2px solid #3b9ede; outline-offset: -2px; }
.kiln-tabs { row-gap: 2px; column-gap: 0; }
.kiln-tab, .kiln-toggle { padding: 1px 6px; background: none; border-color: transparent; color: var(--descrip-text); }
.kiln-tab[aria-pressed=true], .kiln-toggle[aria-pressed=true] { color: var(--input-text); background: var(--comfy-input-bg); border-color: var(--border-color); }
.kiln-tools { margin-left: auto; gap: 0; font-size: 11px; color: var(--descrip-text); }
.kiln-tools label { display: flex; align-items: center; gap: 5px; }
.kiln-tools output { min-width: 2.6em; }
.kiln-slider { appearance: none; width: 60px; height: 4px; margin: 0; border-radius: 2px; background: var(--border-color); cursor: pointer; }
.kiln-slider::-webkit-slider-thumb { appearance: none; width: 12px; height: 12px; border-radius: 50%; background: #e8862e; }
.kiln-slider::-moz-range-thumb { width: 12px; height: 12px; border: 0; border-radius: 50%; background: #e8862e; }
.kiln-run:not([data-tab=loss]) .kiln-tools { display: none; }

.kiln-panels { flex: 1 1 0; min-height: 100px; display: flex; flex-direction: column; gap: 5px; }
.kiln-panels > * { display: none; flex: 1; min-height: 0; }
.kiln-panels > .kiln-open { display: flex; flex-direction: column; }
.kiln-tall.kiln-has-samples[data-tab=loss] .kiln-samples { display: flex; flex: 0 1 auto; max-height: 45%; }
.kiln-run[data-tab=loss] .kiln-thumbnail { height: 64px; }
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

@container (max-width: 300px) {
  .kiln-tools { margin-left: 0; }
  .kiln-controls .kiln-button { padding: 1px 5px; }
}

.kiln-overlay {
  width: 100vw; height: 100vh; max-width: none; max-height: none; margin: 0; padding: 0; border: 0; box-sizing: border-box;
  background: #000e; color: #eee; font: 14px/1.4 Inter, system-ui, sans-serif;
}
.kiln-overlay[open] { display: flex; flex-direction: column; }
.kiln-overlay::backdrop { background: none; }
.kiln-overlay-stage { flex: 1; min-height: 0; display: flex; align-items: center; justify-content: center; gap: 16px; padding: 20px; }
.kiln-overlay-stage img { flex: 1; min-width: 0; height: 100%; object-fit: contain; }
.kiln-overlay-caption { display: flex; align-items: center; gap: 16px; padding: 0 24px 20px; }
.kiln-overlay-title { flex: 1; max-height: 6em; overflow: auto; overflow-wrap: anywhere; user-select: text; }
.kiln-overlay-detail { color: #bbb; white-space: nowrap; font-variant-numeric: tabular-nums; }
.kiln-overlay .kiln-button { color: #eee; background: #333; border-color: #555; padding: 4px 12px; }
.kiln-overlay .kiln-arrow { font-size: 28px; line-height: 1; padding: 8px 14px; }

@media (prefers-reduced-motion: no-preference) {
  .kiln-bar > div { transition: width 0.3s; }
  .kiln-run[data-state=preparing] .kiln-chip { animation: kiln-pulse 2s ease-in-out infinite; }
}
@keyframes kiln-pulse { 50% { opacity: 0.65; } }
`;

const ID = "kiln-style";

/** Adds the style to the page, once. */
export function addStyle() {
  if (document.getElementById(ID)) return;
  const style = document.createElement("style");
  style.id = ID;
  style.textContent = CSS;
  document.head.append(style);
}
