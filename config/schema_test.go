package config

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"unicode/utf8"

	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "write the generated files anew")

// TestReference: docs/settings.md is what the table says.
func TestReference(t *testing.T) {
	const file = "../docs/settings.md"
	want := Reference()
	if *update {
		if err := os.WriteFile(file, want, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(file)
	if err != nil || string(got) != string(want) {
		t.Errorf("%s is not what the table says; run: go test ./config -run TestReference -update (%v)", file, err)
	}
	for _, s := range Table() {
		if n := strings.Count(string(want), "| `"+s.Key+"` |"); n != 1 {
			t.Errorf("%s is there %d times", s.Key, n)
		}
	}
}

// validator is a JSON schema validator of its own, for the keywords that Schema uses; another
// one makes the test fail.
type validator struct {
	t    testing.TB
	root map[string]any
}

func newValidator(t testing.TB) *validator {
	v := &validator{t: t}
	if err := json.Unmarshal(Schema(), &v.root); err != nil {
		t.Fatal(err)
	}
	return v
}

// faults returns what is wrong with a value, "" if nothing is.
func (v *validator) fault(schema any, value any, at string) string {
	if allowed, ok := schema.(bool); ok {
		if !allowed {
			return at + ": not allowed"
		}
		return ""
	}
	s := schema.(map[string]any)
	for keyword, arg := range s {
		if fault := v.keyword(s, keyword, arg, value); fault != "" {
			return at + fault
		}
	}
	return ""
}

func (v *validator) keyword(s map[string]any, keyword string, arg, value any) string {
	switch keyword {
	case "$schema", "$defs", "title", "description", "default":
		return ""
	case "$ref":
		name := strings.TrimPrefix(arg.(string), "#/$defs/")
		def, ok := v.root["$defs"].(map[string]any)[name]
		if !ok {
			v.t.Fatalf("no definition of %v", arg)
		}
		return v.fault(def, value, "")
	case "type":
		for _, name := range asList(arg) {
			if isType(name.(string), value) {
				return ""
			}
		}
		return fmt.Sprintf(": want %v, got %v", arg, value)
	case "const":
		return faultIf(!reflect.DeepEqual(arg, value), ": want %v, got %v", arg, value)
	case "enum":
		for _, one := range arg.([]any) {
			if reflect.DeepEqual(one, value) {
				return ""
			}
		}
		return fmt.Sprintf(": want one of %v, got %v", arg, value)
	case "allOf", "oneOf", "not":
		return v.combination(keyword, arg, value)
	}
	switch value := value.(type) {
	case map[string]any:
		return v.object(s, keyword, arg, value)
	case []any:
		return v.list(keyword, arg, value)
	case string:
		return v.text(keyword, arg, value)
	}
	v.known(keyword)
	return ""
}

func faultIf(bad bool, format string, args ...any) string {
	if !bad {
		return ""
	}
	return fmt.Sprintf(format, args...)
}

func asList(v any) []any {
	if list, ok := v.([]any); ok {
		return list
	}
	return []any{v}
}

func isType(name string, value any) bool {
	switch v := value.(type) {
	case nil:
		return name == "null"
	case map[string]any:
		return name == "object"
	case []any:
		return name == "array"
	case string:
		return name == "string"
	case bool:
		return name == "boolean"
	case float64:
		return name == "number" || name == "integer" && v == math.Trunc(v)
	}
	return false
}

func (v *validator) combination(keyword string, arg, value any) string {
	valid, first := 0, ""
	for _, one := range asList(arg) {
		if fault := v.fault(one, value, ""); fault == "" {
			valid++
		} else if first == "" {
			first = fault
		}
	}
	switch keyword {
	case "allOf":
		return first
	case "not":
		return faultIf(valid > 0, ": must not be so")
	default:
		return faultIf(valid != 1, ": fits %d of the forms; %s", valid, first)
	}
}

// known fails the test for a keyword that no kind of value knows.
func (v *validator) known(keyword string) {
	switch keyword {
	case "properties", "additionalProperties", "required", "minProperties", "maxProperties", "items", "minItems", "uniqueItems", "minLength", "maxLength", "pattern":
	default:
		v.t.Fatalf("the keyword %q is not known here", keyword)
	}
}

func (v *validator) object(s map[string]any, keyword string, arg any, value map[string]any) string {
	switch keyword {
	case "properties":
		for name, of := range arg.(map[string]any) {
			if one, ok := value[name]; ok {
				if fault := v.fault(of, one, "/"+name); fault != "" {
					return fault
				}
			}
		}
	case "additionalProperties":
		properties, _ := s["properties"].(map[string]any)
		for name, one := range value {
			if _, ok := properties[name]; !ok {
				if fault := v.fault(arg, one, "/"+name); fault != "" {
					return fault
				}
			}
		}
	case "required":
		for _, name := range arg.([]any) {
			if _, ok := value[name.(string)]; !ok {
				return fmt.Sprintf(": want %v", name)
			}
		}
	case "minProperties":
		return faultIf(float64(len(value)) < arg.(float64), ": too few")
	case "maxProperties":
		return faultIf(float64(len(value)) > arg.(float64), ": too many")
	default:
		v.known(keyword)
	}
	return ""
}

func (v *validator) list(keyword string, arg any, value []any) string {
	switch keyword {
	case "items":
		for i, one := range value {
			if fault := v.fault(arg, one, fmt.Sprintf("[%d]", i)); fault != "" {
				return fault
			}
		}
	case "minItems":
		return faultIf(float64(len(value)) < arg.(float64), ": too few")
	case "uniqueItems":
		seen := map[any]bool{}
		for _, one := range value {
			if seen[one] {
				return ": twice"
			}
			seen[one] = true
		}
	default:
		v.known(keyword)
	}
	return ""
}

func (v *validator) text(keyword string, arg any, value string) string {
	switch keyword {
	case "minLength":
		return faultIf(float64(utf8.RuneCountInString(value)) < arg.(float64), ": too short")
	case "maxLength":
		return faultIf(float64(utf8.RuneCountInString(value)) > arg.(float64), ": too long")
	case "pattern":
		return faultIf(!regexp.MustCompile(arg.(string)).MatchString(value), ": %q does not match %v", value, arg)
	default:
		v.known(keyword)
	}
	return ""
}

// check validates a YAML text.
func (v *validator) check(text string) string {
	var any any
	if err := yaml.Unmarshal([]byte(text), &any); err != nil {
		v.t.Fatal(err)
	}
	b, err := json.Marshal(any)
	if err != nil {
		v.t.Fatal(err)
	}
	if err := json.Unmarshal(b, &any); err != nil {
		v.t.Fatal(err)
	}
	return v.fault(v.root, any, "")
}

// example is the file of the product's description, with what later parts bring.
const example = `version: 1
# yaml-language-server: $schema=./gatun.schema.json
preset: desktop
filter:
  defaultAction: permit            # permit | block | ask
  blockInbound: on
  endpoints:                       # first match wins; app rules come before these
    - "- L:ads"
    - "- RU"
    - "+ .example.org TCP/443"
dns:
  nameservers: ["dot://dns.example?ip=192.0.2.53", "https://192.0.2.54/dns-query?verify=dns.example"]
lists:
  - {id: ads, category: TRAC, format: hosts, path: /etc/gatun/lists/ads.txt}
  - {id: mal, category: MAL, format: domains, url: "https://lists.example/mal.txt", every: 24h}
geo: {country: /usr/share/GeoIP/country.mmdb, asn: /usr/share/GeoIP/asn.mmdb}
profiles:                          # a list, never a map keyed by path
  - name: curl
    match: [{path: /usr/bin/curl}]
    filter: {defaultAction: block, endpoints: ["+ .example.org TCP/443"]}
  - name: updates
    match: [{tag: systemd-unit, equals: apt-daily.service}]
    tunnel: {use: off}
tunnels:
  - {name: office, type: wireguard, privateKeyFile: /etc/gatun/wg.key, address: [10.9.0.2/32], peers: [{publicKey: "…", endpoint: "198.51.100.7:51820", allowedIPs: ["0.0.0.0/0", "::/0"]}]}
  - {name: lab, type: socks5, server: "127.0.0.1:1080"}
  - {name: exit, type: chain, hops: [office, lab]}      # the first hop is the nearest to us
tunnel: {use: on, via: exit}
gateway: {interfaces: [br0], listen: {wireguard: {port: 51820, privateKeyFile: /etc/gatun/gw.key}}}
`

func TestSchemaAcceptsTheExample(t *testing.T) {
	v := newValidator(t)
	if fault := v.check(example); fault != "" {
		t.Error(fault)
	}
	for _, wrong := range []string{"filter:", "dns:", "profiles:", "version: 1"} {
		text := strings.Replace(example, "\n"+wrong, "\nx"+wrong, 1)
		if text == example {
			text = strings.Replace(example, wrong, "version: 2", 1)
		}
		if fault := v.check(text); fault == "" {
			t.Errorf("with %q changed it is accepted as well", wrong)
		}
	}
}

// TestSchemaAgrees: schema and Load accept and refuse the same, but for what the schema cannot
// know: checks in code, and what is not in this version.
func TestSchemaAgrees(t *testing.T) {
	v := newValidator(t)
	agree := func(text string) {
		t.Helper()
		m, fault := newMerger(newWalker()), v.check("version: 1\n"+text)
		m.file(file{path: "gatun.yaml", data: []byte("version: 1\n" + text)})
		if m.checkLayers(); (len(m.w.problems) == 0) != (fault == "") {
			t.Errorf("%s\nLoad: %v\nschema: %q", text, m.w.problems, fault)
		}
	}
	values := []string{"on", "off", "true", "false", "yes", "1", "-5", "1.5", "danger", "trusted", "permit", "block", "ask", "blok", "nomatch", "rules", "90s", "1m30s", "30d", "week", "[]", `["- *"]`, `["* x"]`, "[1]", "{}", "[{rating: danger}]", "[{rating: bad}]", "server", "info", "beta", "user", "refused", "text"}
	for _, s := range Table() {
		if s.Missing != "" || s.Outside != "" || s.Check != nil || s.Key == "filter/endpoints" || s.Key == "filter/serviceEndpoints" {
			continue
		}
		section, key, _ := strings.Cut(s.Key, "/")
		for _, value := range values {
			agree(fmt.Sprintf("%s: {%s: %s}\n", section, key, value))
			if s.MissingPerApp == "" && (s.PerApp || value == "on") {
				agree(fmt.Sprintf("profiles: [{name: a, match: [{path: /a}], %s: {%s: %s}}]\n", section, key, value))
			}
		}
	}
	for _, text := range []string{
		"filter:\n", "filter: on\n", "filtr: {}\n", "filter: {x: 1}\n", "preset: server\n", "preset: x\n", "profiles:\n", "profiles: {}\n", "profiles: [a]\n",
		"filter: {endpoints: on}\n", "filter: {endpoints: [1]}\n", "filter: {endpoints: [\"+ *\"]}\n",
	} {
		agree(text)
	}
	for _, profile := range []string{
		"{}", "{name: a}", "{name: 1}", "{name: \"\"}", "{name: a, match: []}", "{name: a, match: [{path: /a}]}", "{name: a, match: [{path: {prefix: /a}}]}", "{name: a, match: [{path: {prefix: /a, equals: /b}}]}",
		"{name: a, match: [{path: /a, prefix: /b}]}", "{name: a, match: [{tag: user, equals: x}]}", "{name: a, match: [{tag: user}]}", "{name: a, match: [{tag: nobody, equals: x}]}", "{name: a, match: [{env: A, regex: x}]}",
		"{name: a, match: [{cmdline: x}]}", "{name: a, match: [{}]}", "{name: a, match: [/a]}", "{name: a, layers: []}", "{name: a, layers: on}", "{name: a, when: {}}", "{name: a, when: {}, match: [{path: /a}]}", "{name: a, when: {}, layers: []}",
		"{name: a, when: {interface: wlan0, vpn: on, time: \"22:00-06:00\"}}", "{name: a, when: {vpn: maybe}}", "{name: a, when: {time: \"22-6\"}}", "{name: a, when: {time: \"25:00-06:00\"}}", "{name: a, when: {ssid: \"\"}}", "{name: a, when: {gatway: x}}", "{name: a, when: [x]}",
		"{name: a, origin: automatic, match: [{path: /a}]}", "{name: a, origin: mine}", "{name: a, facts: {path: /a}}", "{name: a, facts: {path: 1}}", "{name: a, facts: []}", "{name: a, core: {mark: 1}}", "{name: a, x: 1}",
	} {
		agree("profiles: [" + profile + "]\n")
	}
}
