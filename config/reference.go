package config

import (
	"fmt"
	"slices"
	"strings"
)

// Reference returns the settings reference, docs/settings.md, made from the table.
func Reference() []byte {
	var b strings.Builder
	b.WriteString(referenceHead)
	last := ""
	table := Table()
	for i := range table {
		s := &table[i]
		section, _, _ := strings.Cut(s.Key, "/")
		if section != last {
			last = section
			fmt.Fprintf(&b, "\n## %s\n\n| setting | what it does | values | default | notes |\n|---|---|---|---|---|\n", section)
		}
		fmt.Fprintf(&b, "| `%s` | **%s.** %s | %s | %s | %s |\n", s.Key, s.Name, cell(s.Description), cell(valuesOf(s)), cell(defaultText(s)), cell(notes(s)))
	}
	b.WriteString("\n## Presets\n\nA preset changes defaults, nothing else: `preset: server` at the top of the file.\n\n| preset | changed defaults |\n|---|---|\n")
	for _, name := range presets() {
		values, _ := preset(name)
		var list []string
		for _, key := range sortedKeys(values) {
			list = append(list, fmt.Sprintf("`%s: %s`", key, FormatValue(values[key])))
		}
		if list == nil {
			list = []string{"none"}
		}
		if part := missingPresets()[name]; part != "" {
			list = append(list, "what it is for needs "+part+", which is not in this version")
		}
		fmt.Fprintf(&b, "| %s | %s |\n", name, strings.Join(list, ", "))
	}
	b.WriteString(referenceProfiles)
	fmt.Fprintf(&b, "| `tag` | one of %s | `{tag: systemd-unit, equals: cups.service}` |\n", oneOf(tagNames))
	b.WriteString(referenceConditions)
	for _, name := range conditionKeys() {
		note := ""
		if part := missingConditions()[name]; part != "" {
			note = " Never holds in this version: it needs " + part + "."
		}
		fmt.Fprintf(&b, "| `%s` | %s.%s |\n", name, conditionText(name), note)
	}
	return []byte(b.String())
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

func valuesOf(s *Setting) string {
	if values := s.Values(); values != nil {
		return strings.Join(values, ", ")
	}
	switch s.Type {
	case TypeInt:
		return "number"
	case TypeDuration:
		return "duration: 90s, 10m, 24h, 30d"
	case TypeObjects:
		return "list of `{rating: …, CONDITION: …}`"
	case TypeString:
		return "text"
	default:
		return s.Type.String()
	}
}

func defaultText(s *Setting) string {
	if text := FormatValue(defaultOf(s)); text != "" && text != "[]" {
		return "`" + text + "`"
	}
	return "none"
}

// notes are the attributes in words.
func notes(s *Setting) string {
	var list []string
	add := func(say bool, text string) {
		if say {
			list = append(list, text)
		}
	}
	add(s.Expertise != User, s.Expertise.String())
	add(s.Release != Stable, s.Release.String())
	add(s.Type == TypeGrade, "graded")
	add(s.PerApp && s.MissingPerApp == "", "per app")
	add(s.Stacked, "stacked")
	add(s.RestartRequired, "needs a restart")
	add(s.Sensitive, "never shown")
	add(s.Outside != "", "set by "+s.Outside)
	add(s.Missing != "", "**not in this version**: needs "+s.Missing)
	for _, v := range sortedKeys(s.MissingValues) {
		add(true, fmt.Sprintf("%s is **not in this version**: needs %s", v, s.MissingValues[v]))
	}
	add(s.MissingPerApp != "", "not per app in this version: needs "+s.MissingPerApp)
	return strings.Join(slices.Compact(list), ", ")
}

func conditionText(name string) string {
	switch name {
	case "interface":
		return "an interface of that name is up"
	case "ssid":
		return "connected to the wireless network of that name"
	case "dnsSuffix":
		return "that domain is one of the search domains that came with the nameservers; all of this machine's networks together have one list"
	case "gateway":
		return "a default route leads to that address"
	case "gatewayMAC":
		return "a default route leads to that hardware address"
	case "address":
		return "this machine has an address in that network"
	case "vpn":
		return "on: traffic leads into another VPN; off: it does not"
	case "portal":
		return "on: behind a captive portal; off: known not to be (`network/onlineCheck`)"
	default:
		return "the local time of day is between these, `22:00-06:00`"
	}
}

const referenceHead = `# Settings

Made from the table of package config by ` + "`go test ./config -run TestReference -update`" + `: do not edit.

A value counts in this order: flag > environment > the human's file (` + "`gatun.yaml`, then `conf.d/*.yaml`" + `) > ` + "`config.json`" + ` (changed at
run time) > preset > default. What the file, the environment or a flag sets is pinned: a change at run time is refused and
names the place. For one program its profile comes first, then the layers of the profile, then profiles with a condition that
holds, then the global value; a **stacked** list is evaluated after the lists of the layers before it, the global one last.

A setting ` + "`section/key`" + ` is written as ` + "`section: {key: value}`" + ` in the file, as ` + "`GATUN_SECTION__KEY`" + ` in the environment, and as
` + "`gatun settings set section/key value`" + ` while gatun runs. ` + "`on` and `true`, `off` and `false`" + ` mean the same. A **graded** setting is active from the
network rating of its value on: ` + "`danger`" + ` only on dangerous networks, ` + "`trusted` and `on`" + ` always.

*expert* and *developer* settings are hidden until ` + "`core/expertiseLevel`" + ` shows them, and are in effect all the same. *beta* and
*experimental* ones have their default until ` + "`core/releaseLevel`" + ` allows them; what is stored comes back then.
`

const referenceProfiles = `
## Profiles

One format for the human's file, the files in ` + "`profiles/`" + ` of the state directory, export and import:

` + "```yaml" + `
version: 1
profiles:
  - name: browser                  # unique
    match: [{path: /usr/bin/firefox}, {tag: flatpak, equals: org.mozilla.firefox}]
    layers: [web]                  # profiles that lie under this one, the nearest first
    filter: {defaultAction: ask}   # every setting that is marked "per app"
  - name: web                      # a group: no match, used as a layer
    filter: {endpoints: ["- LAN"]}
  - name: away                     # for all programs, above the global settings, while the condition holds
    when: {interface: wlan0}
    filter: {blockLAN: on}
` + "```" + `

` + "`origin`, `created` and `facts`" + ` are written by gatun. A profile is recognised by one of the items of ` + "`match`" + `; instead of ` + "`equals`" + ` any item
can say ` + "`prefix` or `regex`" + `. The item with the best score wins: tag before cmdline before env before path, then equals before prefix
before regex, then the longer text.

| item | what it looks at | example |
|---|---|---|
| ` + "`path`" + ` | the program's file | ` + "`{path: /usr/bin/curl}`, `{path: {prefix: /opt/}}`" + ` |
| ` + "`cmdline`" + ` | the arguments, joined by blanks | ` + "`{cmdline: {prefix: \"python3 /srv/\"}}`" + ` |
| ` + "`env`" + ` | a variable of the environment | ` + "`{env: ROLE, equals: test}`" + ` |
`

const referenceConditions = `
## Network conditions

For ` + "`when` of a profile and for the rules of `network/ratingRules`" + `. All that are given have to hold; none always holds.

| condition | holds if |
|---|---|
`
