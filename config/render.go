package config

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

// quote writes a text in double quotes in a way that means the same in YAML and in JSON.
// strconv.Quote and encoding/json both have escapes, or raw characters, that the other or YAML
// does not know.
func quote(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			b.WriteByte('\\')
			b.WriteRune(r)
		case unicode.IsPrint(r) || r > 0xffff:
			b.WriteRune(r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
	}
	b.WriteByte('"')
	return b.String()
}

// word writes a text without quotes where every YAML library takes it for text.
func word(s string) string {
	safe := s != "" && strings.ContainsRune(wordBegin, rune(s[0])) && strings.Trim(s, wordBegin+"0123456789.-+") == ""
	if !safe || slices.Contains([]string{"true", "false", "on", "off", "yes", "no", "y", "n", "null"}, strings.ToLower(s)) {
		return quote(s)
	}
	return s
}

const wordBegin = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ/_"

// validText reports whether a text of a person can be written and read again: it is not empty
// and has no line breaks or control characters.
func validText(s string) bool {
	return s != "" && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func formatSwitch(on bool) string {
	if on {
		return "on"
	}
	return "off"
}

// formatDuration writes a duration as people do: 30d, 1h, 90s.
func formatDuration(d time.Duration) string {
	for _, unit := range []struct {
		d    time.Duration
		name string
	}{{24 * time.Hour, "d"}, {time.Hour, "h"}, {time.Minute, "m"}, {time.Second, "s"}} {
		if d != 0 && d%unit.d == 0 {
			return strconv.FormatInt(int64(d/unit.d), 10) + unit.name
		}
	}
	return d.String()
}

// plain turns a value into what JSON knows, in the canonical spelling.
func plain(v any) any {
	switch v := v.(type) {
	case time.Duration:
		return formatDuration(v)
	case Grade:
		return v.String()
	case []RuleText:
		texts := make([]string, len(v))
		for i, item := range v {
			texts[i] = item.Text
		}
		return texts
	case []RatingRule:
		list := make([]map[string]any, len(v))
		for i := range v {
			list[i] = map[string]any{"rating": v[i].Rating}
			for _, f := range v[i].When.fields() {
				list[i][f.name] = f.value
			}
		}
		return list
	case nil:
		return []any{}
	default:
		return v
	}
}

// FormatValue writes a value for people: on, 60s, [a, b]. It takes what Value.Any and
// SettingState.Value hold, also after they were JSON.
func FormatValue(v any) string {
	switch v := widen(plain(v)).(type) {
	case bool:
		return formatSwitch(v)
	case []any:
		items := make([]string, len(v))
		for i, item := range v {
			items[i] = FormatValue(item)
		}
		return "[" + strings.Join(items, ", ") + "]"
	case map[string]any:
		return flow(v)
	default:
		return fmt.Sprint(v)
	}
}

func flow(item map[string]any) string {
	var parts []string
	for _, name := range append([]string{"rating"}, conditionKeys()...) {
		if v, ok := item[name]; ok {
			parts = append(parts, name+": "+FormatValue(v))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// field is one field of a condition in the canonical spelling.
type field struct {
	name  string
	value any // string or bool
}

// fields returns what is given, in the canonical order.
func (n *NetworkCondition) fields() []field {
	var list []field
	text := func(name, value string) {
		if value != "" {
			list = append(list, field{name, value})
		}
	}
	text("interface", n.Interface)
	text("ssid", n.SSID)
	text("dnsSuffix", n.DNSSuffix)
	if n.Gateway.IsValid() {
		text("gateway", n.Gateway.String())
	}
	text("gatewayMAC", n.GatewayMAC)
	if n.Address.IsValid() {
		text("address", n.Address.String())
	}
	if n.VPN != nil {
		list = append(list, field{"vpn", *n.VPN})
	}
	if n.Portal != nil {
		list = append(list, field{"portal", *n.Portal})
	}
	text("time", n.Time)
	return list
}

// flow writes the condition as YAML on one line.
func (n *NetworkCondition) flow() string {
	var parts []string
	for _, f := range n.fields() {
		if on, ok := f.value.(bool); ok {
			parts = append(parts, f.name+": "+formatSwitch(on))
		} else {
			parts = append(parts, f.name+": "+word(f.value.(string)))
		}
	}
	return "{" + strings.Join(parts, ", ") + "}"
}

// nodeOf makes the tree of a value, as the decoder of a file would.
func nodeOf(v any) *yaml.Node {
	t := tomlTree{}
	return t.node("", widen(v))
}

// widen turns what plain returns into what decoders return.
func widen(v any) any {
	switch v := v.(type) {
	case int:
		return int64(v)
	case float64:
		if v == float64(int64(v)) {
			return int64(v)
		}
	case []string:
		list := make([]any, len(v))
		for i := range v {
			list[i] = v[i]
		}
		return list
	case []map[string]any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = v[i]
		}
		return list
	case []any:
		list := make([]any, len(v))
		for i := range v {
			list[i] = widen(v[i])
		}
		return list
	case map[string]any:
		m := make(map[string]any, len(v))
		for name := range v {
			m[name] = widen(v[name])
		}
		return m
	}
	return v
}

// renderJSON writes a tree as JSON, one item on a line, so that each has a position.
func renderJSON(b *strings.Builder, n *yaml.Node, indent string) {
	n = resolve(n)
	inner := indent + "  "
	switch {
	case n.Kind == yaml.MappingNode && len(n.Content) > 0:
		b.WriteString("{\n")
		for i := 0; i+1 < len(n.Content); i += 2 {
			b.WriteString(inner + quote(n.Content[i].Value) + ": ")
			renderJSON(b, n.Content[i+1], inner)
			if i+2 < len(n.Content) {
				b.WriteByte(',')
			}
			b.WriteByte('\n')
		}
		b.WriteString(indent + "}")
	case n.Kind == yaml.SequenceNode && len(n.Content) > 0:
		b.WriteString("[\n")
		for i, item := range n.Content {
			b.WriteString(inner)
			renderJSON(b, item, inner)
			if i+1 < len(n.Content) {
				b.WriteByte(',')
			}
			b.WriteByte('\n')
		}
		b.WriteString(indent + "]")
	case n.Kind == yaml.MappingNode:
		b.WriteString("{}")
	case n.Kind == yaml.SequenceNode:
		b.WriteString("[]")
	case n.Tag == "!!null":
		b.WriteString("null")
	case n.Tag == "!!bool" || n.Tag == "!!int" || n.Tag == "!!float":
		b.WriteString(n.Value)
	default:
		b.WriteString(quote(n.Value))
	}
}
