package config

import (
	"bytes"
	"encoding/json"
	"slices"
	"strings"
)

// object is a JSON object.
type object = map[string]any

// Schema returns the JSON schema (draft 2020-12) of the human's file, made from the table. What
// is not in this version yet is described as well: editors then know it, and Load names the
// reason why it is refused.
func Schema() []byte {
	properties := sections(func(s *Setting) bool { return s.Outside == "" })
	properties["version"] = object{"const": fileVersion, "description": "The version of the file format."}
	properties["preset"] = object{"enum": presets(), "description": "A set of defaults."}
	properties["profiles"] = object{"type": []string{"array", "null"}, "items": ref("profile"), "description": "What holds for single programs."}
	properties["lists"] = object{"type": []string{"array", "null"}, "items": ref("filterList"), "description": "Filter lists, from files and URLs."}
	properties["geo"] = geoSchema()
	for name, part := range missingSections() {
		of := object{"type": "object", "description": "Not in this version: it needs " + part.needs + "."}
		if part.list {
			of = object{"type": "array", "items": object{"type": "object"}, "description": of["description"]}
		}
		properties[name] = of
	}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	if err := e.Encode(object{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "The configuration of gatun",
		"type": "object", "properties": properties, "additionalProperties": false, "required": []string{"version"},
		"$defs": object{
			"switch": object{"enum": []any{"on", "off", true, false}}, "grade": object{"enum": []any{"off", "trusted", "untrusted", "danger", "on", true, false}},
			"duration": object{"type": "string", "pattern": `^(([0-9]+\.?[0-9]*|\.[0-9]+)(ns|us|µs|ms|s|m|h|d))+$`},
			"rule":     object{"type": "string", "pattern": `^\s*(\+|-|\?)`},
			"profile":  profileSchema(), "filterList": filterListSchema(), "fingerprint": fingerprintSchema(), "condition": conditionSchema(), "ratingRule": ratingRuleSchema(),
		},
	}); err != nil {
		panic(err) // maps of texts and numbers
	}
	return b.Bytes()
}

func ref(name string) object { return object{"$ref": "#/$defs/" + name} }

// sections describes the sections of those settings.
func sections(want func(*Setting) bool) object {
	properties := object{}
	table := Table()
	for i := range table {
		if !want(&table[i]) {
			continue
		}
		name, key, _ := strings.Cut(table[i].Key, "/")
		section, ok := properties[name].(object)
		if !ok {
			section = object{"type": []string{"object", "null"}, "properties": object{}, "additionalProperties": false}
			properties[name] = section
		}
		section["properties"].(object)[key] = settingSchema(&table[i])
	}
	return properties
}

func settingSchema(s *Setting) object {
	o := object{}
	switch s.Type {
	case TypeBool:
		o = ref("switch")
	case TypeGrade:
		o = ref("grade")
	case TypeDuration:
		o = ref("duration")
	case TypeInt:
		o["type"] = "integer"
	case TypeStrings:
		o["type"], o["items"] = "array", object{"type": "string"}
	case TypeRules:
		o["type"], o["items"] = "array", ref("rule")
	case TypeObjects:
		o["type"], o["items"] = "array", ref("ratingRule")
	default:
		o["type"] = "string"
		if len(s.PossibleValues) > 0 {
			o = object{"enum": s.PossibleValues}
		}
	}
	o["title"], o["description"] = s.Name, s.Description
	if s.Missing != "" {
		o["description"] = s.Description + " Not in this version: it needs " + s.Missing + "."
	}
	if !s.Sensitive {
		o["default"] = plain(defaultOf(s))
	}
	return o
}

func profileSchema() object {
	properties := sections(func(s *Setting) bool { return s.PerApp && s.MissingPerApp == "" })
	for name, of := range (object{
		"name":    object{"type": "string", "minLength": 1, "maxLength": maxProfileName},
		"match":   object{"type": "array", "items": ref("fingerprint"), "minItems": 1, "description": "How the programs are recognised: one of these is enough."},
		"layers":  object{"type": "array", "items": object{"type": "string"}, "uniqueItems": true, "description": "Profiles that lie under this one, the nearest first."},
		"when":    object{"$ref": "#/$defs/condition", "description": "Makes it a profile for all programs while the condition holds."},
		"origin":  object{"enum": []string{"runtime", "automatic"}, "description": "Who made it; means nothing in this file."},
		"created": object{"type": "string"},
		"facts":   object{"type": "object", "additionalProperties": object{"type": "string"}, "description": "What was known of the program when it was first seen."},
	}) {
		properties[name] = of
	}
	return object{
		"type": "object", "properties": properties, "additionalProperties": false, "required": []string{"name"},
		"allOf": []object{
			{"not": object{"required": []string{"match", "when"}}},
			{"not": object{"required": []string{"layers", "when"}}},
		},
	}
}

func fingerprintSchema() object {
	text := object{"type": "string", "minLength": 1}
	operations := object{"equals": text, "prefix": text, "regex": text}
	one := func(name string) object {
		return object{
			"type": "object", "required": []string{name}, "additionalProperties": false,
			"properties": object{name: object{"oneOf": []object{text, {"type": "object", "properties": operations, "additionalProperties": false, "minProperties": 1, "maxProperties": 1}}}},
		}
	}
	named := func(name string, of object) object {
		properties := object{name: of}
		for op := range operations {
			properties[op] = text
		}
		return object{"type": "object", "required": []string{name}, "properties": properties, "additionalProperties": false, "minProperties": 2, "maxProperties": 2}
	}
	return object{"oneOf": []object{one("path"), one("cmdline"), named("env", text), named("tag", object{"enum": tagNames})}}
}

func conditionSchema() object {
	properties := object{}
	for _, name := range conditionKeys() {
		properties[name] = object{"type": "string", "minLength": 1}
	}
	properties["vpn"], properties["portal"] = ref("switch"), ref("switch")
	properties["dnsSuffix"] = object{"type": "string", "pattern": `^[^ \t]*[^. \t][^ \t]*$`, "description": "A search domain that came with the nameservers."}
	properties["time"] = object{"type": "string", "pattern": `^([01][0-9]|2[0-3]):[0-5][0-9]-(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$`, "description": "Local time of day, such as 22:00-06:00."}
	for name, part := range missingConditions() {
		properties[name].(object)["description"] = "Never holds in this version: it needs " + part + "."
	}
	return object{"type": "object", "properties": properties, "additionalProperties": false}
}

func ratingRuleSchema() object {
	o := conditionSchema()
	ratings := Table()[slices.IndexFunc(Table(), func(s Setting) bool { return s.Key == "network/rating" })].PossibleValues
	o["properties"].(object)["rating"] = object{"enum": ratings}
	o["required"] = []string{"rating"}
	return o
}
