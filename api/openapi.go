package api

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// object is a JSON object that is written with sorted keys.
type object = map[string]any

// document describes every route in OpenAPI 3.1. The schemas are made from the Go types that are
// encoded, so they cannot differ from what is sent.
func (s *Server) document() []byte {
	d := describer{schemas: object{}}
	paths := object{}
	for _, r := range s.routes() {
		path := strings.ReplaceAll(r.path, "...}", "}")
		methods, _ := paths[path].(object)
		if methods == nil {
			methods = object{}
			paths[path] = methods
		}
		methods[strings.ToLower(r.method)] = d.operation(r)
	}
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	_ = enc.Encode(object{ // maps, strings and numbers: cannot fail
		"openapi": "3.1.0",
		"info": object{
			"title": "gatun", "version": "1",
			"description": "The API of a running gatun on its unix socket. Reading needs the socket's permissions; a change needs root or the user that gatun runs as, by the kernel's word. Fields are only ever added.",
			"license":     object{"name": "Apache-2.0", "identifier": "Apache-2.0"},
		},
		"servers":    []any{object{"url": "http://gatun", "description": "any host name: the socket decides"}},
		"paths":      paths,
		"components": object{"schemas": d.schemas},
	})
	return b.Bytes()
}

// describer collects the schemas of named types while it describes.
type describer struct {
	schemas object
}

func (d *describer) operation(r route) object {
	op := object{"summary": r.summary, "responses": object{}}
	responses := op["responses"].(object)
	responses["200"] = object{"description": "done", "content": d.content(r.answer)}
	codes := r.codes
	if r.changes {
		codes = append([]int{http.StatusForbidden}, codes...)
	}
	for _, code := range codes {
		responses[strconv.Itoa(code)] = object{"description": http.StatusText(code), "content": d.content(Failure{})}
	}
	if r.body != nil {
		op["requestBody"] = object{"required": true, "content": d.content(r.body)}
	}
	var parameters []any
	for _, name := range regexp.MustCompile(`\{(\w+)`).FindAllStringSubmatch(r.path, -1) {
		parameters = append(parameters, object{"name": name[1], "in": "path", "required": true, "schema": object{"type": "string"}})
	}
	for _, name := range sortedKeys(r.query) {
		parameters = append(parameters, object{"name": name, "in": "query", "description": r.query[name], "schema": object{"type": "string"}})
	}
	if parameters != nil {
		op["parameters"] = parameters
	}
	return op
}

func (d *describer) content(v any) object {
	if t, ok := v.(text); ok {
		return object{string(t): object{"schema": object{"type": "string"}}}
	}
	if list, ok := v.(either); ok {
		var schemas []any
		for _, v := range list {
			schemas = append(schemas, d.schema(reflect.TypeOf(v)))
		}
		return object{typeJSON: object{"schema": object{"anyOf": schemas}}}
	}
	return object{typeJSON: object{"schema": d.schema(reflect.TypeOf(v))}}
}

// schema describes what encoding/json makes of a type.
func (d *describer) schema(t reflect.Type) object {
	switch {
	case t == reflect.TypeFor[time.Time]():
		return object{"type": "string", "format": "date-time"}
	case t == reflect.TypeFor[json.RawMessage]():
		return object{}
	case t.Kind() != reflect.Pointer && t.Implements(reflect.TypeFor[interface{ MarshalText() ([]byte, error) }]()):
		return object{"type": "string"}
	}
	switch t.Kind() {
	case reflect.Bool:
		return object{"type": "boolean"}
	case reflect.String:
		return object{"type": "string"}
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64, reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return object{"type": "integer"}
	case reflect.Float32, reflect.Float64:
		return object{"type": "number"}
	case reflect.Slice:
		return object{"type": "array", "items": d.schema(t.Elem())}
	case reflect.Map:
		return object{"type": "object", "additionalProperties": d.schema(t.Elem())}
	case reflect.Pointer:
		return object{"anyOf": []any{d.schema(t.Elem()), object{"type": "null"}}}
	case reflect.Struct:
		return d.named(t)
	case reflect.Interface:
		return object{}
	default:
		panic(fmt.Sprintf("api: %s cannot be described", t))
	}
}

func (d *describer) named(t reflect.Type) object {
	name := strings.ReplaceAll(t.String(), "api.", "")
	ref := object{"$ref": "#/components/schemas/" + name}
	if d.schemas[name] != nil {
		return ref
	}
	properties, required := object{}, []any{}
	s := object{"type": "object", "properties": properties}
	d.schemas[name] = s // before its fields: a type may contain itself
	for _, f := range reflect.VisibleFields(t) {
		tag, ok := f.Tag.Lookup("json")
		field, options, _ := strings.Cut(tag, ",")
		if !ok || field == "-" || f.Anonymous {
			continue
		}
		properties[field] = d.schema(f.Type)
		if options == "" {
			required = append(required, field)
		}
	}
	s["required"] = required
	return ref
}
