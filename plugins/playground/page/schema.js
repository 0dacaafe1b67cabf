// What /openapi.json says, made ready for forms: endpoints, their inputs, and which widget a field gets.

/** All endpoints of a document, in its order. */
export function endpointsOf(document) {
  const resolve = resolver(document.components?.schemas ?? {});
  const order = document["x-fal-order-paths"] ?? Object.keys(document.paths);
  const found = [];
  for (const path of order) {
    const item = document.paths[path];
    const protocol = item?.["x-fal-protocol"];
    if (protocol) found.push(endpoint(path, item.post ?? {}, protocol.type, resolve, protocol));
    else if (item?.post) {
      const answers = item.post.responses?.["200"]?.content ?? {};
      found.push(endpoint(path, item.post, "text/event-stream" in answers ? "stream" : "direct", resolve));
    }
  }
  return found;
}

function endpoint(path, operation, kind, resolve, protocol) {
  const body = Object.values(operation.requestBody?.content ?? {})[0]?.schema;
  const answers = operation.responses?.["200"]?.content ?? {};
  const whole = (answers["application/json"] ?? Object.values(answers)[0])?.schema;
  const answer = kind === "stream" ? whole?.items : whole;
  const carried = (operation.parameters ?? []).filter((p) => p.in !== "cookie" && !/^x-fal-/i.test(p.name));
  return {
    path, kind, protocol, resolve,
    title: protocol ? words(protocol.operationId ?? "Realtime") : (operation.summary ?? path),
    description: operation.description ?? "",
    sources: Object.fromEntries(carried.map((p) => [p.name, p.in])),
    hasBody: body !== undefined,
    input: inputSchema(body, carried, resolve),
    output: resolve(answer ?? {}),
  };
}

/** One object schema of all that a call takes: the body's fields, and parameters beside them. */
function inputSchema(body, carried, resolve) {
  const whole = body === undefined ? { type: "object", properties: {} } : resolve(body);
  if (!carried.length) return whole;
  const beside = Object.fromEntries(carried.map((p) => [p.name, { description: p.description, ...p.schema }]));
  const needed = carried.filter((p) => p.required).map((p) => p.name);
  return { ...whole, type: "object", properties: { ...beside, ...whole.properties }, required: [...needed, ...(whole.required ?? [])] };
}

const SHORT_FOR = /\b(api|cfg|csv|exr|fps|glb|gpu|hd|id|json|llm|mp3|mp4|nsfw|obj|pdf|rgb|svg|tts|url|wav)(s?)\b/g;

/** A name as people write it: `mask_image_url` is "Mask image URL". */
export const words = (name) => {
  const text = name.replace(/[_-]+/g, " ").trim().replace(SHORT_FOR, (_, short, plural) => short.toUpperCase() + plural);
  return text.charAt(0).toUpperCase() + text.slice(1);
};

/** The title of a field: its author's, unless it is only the name in capitals, as generators write it. */
export const titleOf = (name, schema) => (!schema.title || schema.title.toLowerCase() === words(name).toLowerCase() ? words(name) : schema.title);

/** A function that follows references and folds `X | null` into X with `nullable`. Shallow: what is inside stays. */
function resolver(components) {
  const resolve = (schema, depth = 0) => {
    if (!schema || typeof schema !== "object" || depth > 20) return {};
    if (schema.$ref) {
      const { $ref, ...beside } = schema;
      const name = $ref.split("/").pop();
      return { ...resolve(components[name], depth + 1), ...beside, component: name };
    }
    if (schema.allOf?.length === 1) {
      const { allOf, ...beside } = schema;
      return { ...resolve(allOf[0], depth + 1), ...beside };
    }
    const { anyOf, oneOf, ...beside } = schema;
    const variants = anyOf ?? oneOf ?? (Array.isArray(schema.type) ? schema.type.map((type) => ({ ...beside, type })) : undefined);
    if (!variants) return schema;
    const kept = variants.filter((variant) => variant.type !== "null");
    const nullable = kept.length < variants.length;
    if (kept.length === 1) return { ...resolve(kept[0], depth + 1), ...beside, ...(Array.isArray(schema.type) ? { type: kept[0].type } : {}), nullable };
    return { ...beside, type: undefined, variants: kept.map((variant) => resolve(variant, depth + 1)), nullable };
  };
  return resolve;
}

/** The names of an object's fields in the order its author gave. */
export const ordered = (schema) => schema["x-fal-order-properties"]?.filter((name) => name in (schema.properties ?? {})) ?? Object.keys(schema.properties ?? {});

const MEDIA = ["image", "audio", "video", "file"];
const URLS = /(^|_)(image|video|audio|file|model|data|archive|mask)_urls?$/;
const KINDS = { data: "file", archive: "file", mask: "image" }; // of names that are no kinds themselves
const MODELS = /(^|_)(model|mesh)(_(glb|obj|mesh))?$/;

/** The kind of medium that a field takes, or undefined. */
export function mediumOfField(name, schema) {
  if (MEDIA.includes(schema.ui?.field)) return schema.ui.field;
  const variant = schema.variants?.map((one) => mediumOfField("", one)).find(Boolean);
  if (variant) return variant;
  const record = schema.type === "object" && schema.properties?.url && schema.properties?.content_type;
  const named = URLS.exec(name)?.[2] ?? (/(^mask_(image_)?url|mask_(image_)?url$)/.test(name) ? "mask" : undefined);
  const isUrl = schema.type === "string" && !schema.enum;
  if (record) return MEDIA.includes(named) ? named : named === "model" || MODELS.test(name) ? "model" : "file";
  return isUrl && named ? (KINDS[named] ?? named) : undefined;
}

/** Whether a field takes many files as one: a dataset, or an archive. */
const isBundle = (name) => /(^|_)(data|archive)_url$/.test(name);

/** Whether a field says how a camera moves. */
export const isMotion = (name, schema) => schema.ui?.field === "camera_control" || /(^|_)camera_control$/.test(name);

/** Whether a field is the size of a picture: one of some names, or a width and a height. */
function isSize(schema) {
  const [named, sized] = [schema.variants?.find((one) => one.enum), schema.variants?.find((one) => one.properties)];
  const sides = sized && Object.keys(sized.properties);
  return schema.variants?.length === 2 && named?.enum.every((one) => typeof one === "string") && sides?.length === 2 && sides.includes("width") && sides.includes("height");
}

/** Whether a schema is fal's RGBColor. */
const isColor = (schema) => schema.properties?.r && schema.properties.g && schema.properties.b && (schema.component ?? schema.title) === "RGBColor";

export const isMask = (name) => /(^|_)mask(_image)?_url|^mask_(image_)?url/.test(name);

/** Which widget shows a field (the contract's table of types and names). */
export function widgetOf(name, schema, resolve) {
  const field = schema.ui?.field;
  if ("const" in schema) return "constant";
  if (isColor(schema)) return "color";
  if (schema.type !== "array" && mediumOfField(name, schema)) return isBundle(name) ? "bundle" : "medium";
  if (schema.variants) return isSize(schema) ? "size" : "union";
  if (schema.enum) return "select";
  switch (schema.type) {
    case "boolean":
      return "toggle";
    case "integer":
    case "number":
      if (field === "seed" || (schema.type === "integer" && /seed$/.test(name))) return "seed";
      return bounds(schema) && field !== "number" ? "slider" : "number";
    case "string":
      if (field === "textarea" || /(^|_)prompt$/.test(name) || schema.maxLength > 400) return "textarea";
      return (field === "presets" || /model_name$/.test(name)) && schema.examples?.length ? "presets" : "text";
    case "array": {
      const items = resolve(schema.items ?? {});
      if (items.enum) return "checks";
      if (isColor(items)) return "palette";
      if (mediumOfField(name.replace(/s$/, ""), items)) return "media";
      return items.type || items.variants || items.properties ? "list" : "json";
    }
    case "object":
      return schema.properties ? "object" : "json";
    default:
      return "json";
  }
}

/** The ends and step of a slider; undefined where there are not two ends, or too many steps between them. */
export function bounds(schema) {
  const low = schema.minimum ?? schema.exclusiveMinimum;
  const high = schema.maximum ?? schema.exclusiveMaximum;
  if (low === undefined || high === undefined || !(high > low) || high - low > 1e6) return undefined;
  const step = schema.multipleOf ?? (schema.type === "integer" ? 1 : 10 ** Math.floor(Math.log10((high - low) / 50)));
  return {
    step,
    low: schema.minimum ?? round(low + step),
    high: schema.maximum ?? round(high - step),
  };
}

const round = (number) => Number(number.toPrecision(12));

/** What a field holds before anybody touched it; undefined for nothing. */
export function initial(schema) {
  if (schema.examples?.length) return schema.examples[0];
  if ("example" in schema) return schema.example;
  if ("const" in schema) return schema.const;
  return schema.default === null ? undefined : schema.default;
}

/** Whether `value` could be meant for `schema`, by its outer shape. */
export function fits(schema, value) {
  if ("const" in schema) return schema.const === value;
  if (schema.enum) return schema.enum.includes(value);
  if (schema.variants) return schema.variants.some((one) => fits(one, value));
  switch (schema.type) {
    case "string": return typeof value === "string";
    case "boolean": return typeof value === "boolean";
    case "integer": return Number.isInteger(value);
    case "number": return typeof value === "number";
    case "array": return Array.isArray(value);
    case "object": {
      if (typeof value !== "object" || value === null || Array.isArray(value)) return false;
      const constants = Object.entries(schema.properties ?? {}).filter(([, field]) => "const" in field);
      return (schema.required ?? []).every((name) => name in value) && constants.every(([name, field]) => !(name in value) || value[name] === field.const);
    }
    default: return true;
  }
}
