// The presets of LoRA Config: choosing one fills in the widgets that it sets.
import { after, widgetNamed } from "./node_widgets.mjs";

/**
 * Makes the preset widget of a LoRA Config node fill in the other widgets.
 * @param {() => object} getPresets gives {preset name: {widget name: value}}
 */
export function fillInPresets(node, getPresets) {
  const preset = widgetNamed(node, "preset");
  if (!preset) return;
  after(preset, "callback", (name) => {
    const values = getPresets()[name] ?? {};
    for (const widget of node.widgets) if (widget.name in values) widget.value = values[widget.name];
    node.setDirtyCanvas(true, true);
  });
}
