package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const casesPolicy = `version: 1
core: {releaseLevel: stable}
filter:
  blockInbound: off
  blockLAN: untrusted
  endpoints:
    - "- L:ads"
    - "- RU"
    - "+ .a.example TCP/443"
    - "- .blocked.example"
    - "-- 198.51.100.0/24"
    - "? .ask.example"
    - "- * TCP/25"
  serviceEndpoints: ["+ LAN TCP/22"]
profiles:
  - name: curl
    match: [{path: /usr/bin/curl}]
    filter: {defaultAction: block, endpoints: ["+ .b.example"]}
  - name: updates
    match: [{tag: systemd-unit, equals: updates.service}]
    filter: {endpoints: ["- *"]}
`

// inFiles writes a policy and its cases and returns the files.
func inFiles(t *testing.T, policy, cases string) (policyFile, casesFile string) {
	t.Helper()
	dir := t.TempDir()
	policyFile, casesFile = filepath.Join(dir, "gatun.yaml"), filepath.Join(dir, "cases.yaml")
	for file, text := range map[string]string{policyFile: policy, casesFile: cases} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return policyFile, casesFile
}

// TestCases: a policy of every kind of rule and setting, and cases that are all right.
func TestCases(t *testing.T) {
	cases := []string{
		`{program: /usr/bin/wget, domain: www.a.example, to: "192.0.2.1:443/tcp", expect: accept, rule: "+ .a.example TCP/443 # the same"}`,
		`{program: /usr/bin/wget, domain: www.a.example, to: "192.0.2.1:80/tcp", expect: accept}`,
		`{program: /usr/bin/wget, domain: x.BLOCKED.example., expect: block, rule: "- .blocked.example"}`,
		`{program: /usr/bin/wget, domain: other.example, expect: accept}`,
		`{program: /usr/bin/wget, to: "198.51.100.7:443/tcp", expect: drop, rule: "-- 198.51.100.0/24"}`,
		`{program: /usr/bin/wget, domain: www.ask.example, to: "192.0.2.1:443/tcp", expect: ask, rule: "? .ask.example"}`,
		`{program: /usr/bin/wget, to: "192.0.2.1:25/tcp", expect: block, rule: "-  *  tcp/25"}`,
		`{program: /usr/bin/wget, to: "192.0.2.1:25/udp", expect: accept}`,
		`{program: /usr/bin/wget, to: "192.0.2.1/icmp", expect: accept}`,
		`{program: /usr/bin/wget, to: "[2001:db8::1]:443/tcp", direction: outbound, expect: accept}`,
		`{program: /usr/bin/wget, to: "192.0.2.1:443/tcp", country: RU, expect: block, rule: "- RU"}`,
		`{program: /usr/bin/wget, to: "192.0.2.1:443/tcp", country: NO, asn: AS64500, expect: accept}`,
		`{program: /usr/bin/wget, to: "192.0.2.1:443/tcp", lists: "mal,ads", expect: block, rule: "- L:ads"}`,
		`{program: /usr/bin/wget, to: "10.0.0.1:443/tcp", expect: accept}`,
		`{program: /usr/bin/wget, to: "10.0.0.1:443/tcp", rating: trusted, expect: accept}`,
		`{program: /usr/bin/wget, to: "10.0.0.1:443/tcp", rating: danger, expect: block}`,
		`{program: /usr/bin/curl, user: 1000, domain: www.b.example, to: "192.0.2.1:80/tcp", expect: accept, rule: "+ .b.example"}`,
		`{program: /usr/bin/curl, to: "192.0.2.1:80/tcp", expect: block}`,
		`{program: /usr/bin/wget, unit: updates.service, domain: any.example, expect: block, rule: "- *"}`,
		`{domain: x.blocked.example, expect: block}`,
		`{program: /usr/sbin/sshd, direction: inbound, from: 10.0.0.9, to: "10.0.0.1:22/tcp", expect: accept, rule: "+ LAN TCP/22"}`,
		`{program: /usr/sbin/sshd, direction: inbound, from: 10.0.0.9, to: "10.0.0.1:23/tcp", expect: drop}`,
		`{program: /usr/sbin/sshd, direction: inbound, from: "2001:db8::1", to: "[2001:db8::2]:22/tcp", expect: drop}`,
	}
	policy, file := inFiles(t, casesPolicy, "cases:\n  - "+strings.Join(cases, "\n  - ")+"\n")
	out, talk, code := execute(t, "check", policy, "--cases", file)
	if code != 0 || talk != "" || out != fmt.Sprintf("%d of %d cases are as expected\n", len(cases), len(cases)) {
		t.Errorf("exit code %d\n%s%s", code, out, talk)
	}
}

func TestCasesFail(t *testing.T) {
	policy, file := inFiles(t, casesPolicy, `cases:
  - {program: /usr/bin/wget, domain: x.blocked.example, expect: accept}
  - {program: /usr/bin/wget, domain: x.blocked.example, expect: block, rule: "- *"}
  - {program: /usr/bin/wget, domain: x.blocked.example, expect: block}
`)
	out, talk, code := execute(t, "check", policy, "--cases", file)
	if code != exitFailed || talk != "\n" && talk != "" {
		t.Errorf("exit code %d, talk %q", code, talk)
	}
	for _, want := range []string{
		file + `:2:5: /usr/bin/wget (x.blocked.example): expected accept, got block`, file + `:3:5: /usr/bin/wget (x.blocked.example): expected block by "- *", got block`,
		`BLOCK: matched the rule "- .blocked.example"`, policy + ":10", "before-intel", "1 of 3 cases are as expected\n",
	} {
		if !strings.Contains(out, want) {
			t.Errorf("%q is missing in\n%s", want, out)
		}
	}
	out, _, code = execute(t, "check", policy, "--json", "--cases", file)
	var report casesReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitFailed {
		t.Fatalf("exit code %d, %v: %s", code, err, out)
	}
	if report.OK || report.Cases != 3 || len(report.Failed) != 2 || report.Schema != "gatun/v1" {
		t.Errorf("got %+v", report)
	}
	if f := report.Failed[0]; f.Line != 2 || f.Col != 5 || f.Expected != "accept" || f.Got != "block" || f.Why.Verdict != "block" || !strings.Contains(string(f.Why.Rule), "- .blocked.example") {
		t.Errorf("got %+v", f)
	}
}

// TestCasesRefused: what is wrong in the file of cases is said with its place; exit code 3.
func TestCasesRefused(t *testing.T) {
	table := map[string]string{
		`{to: "192.0.2.1:1/tcp"}`:                                                      "2:5: cases[0]: want expect: accept, block, drop or ask",
		`{to: "192.0.2.1:1/tcp", expect: allow}`:                                       `2:37: cases[0]/expect: want accept, block, drop, ask, got "allow"`,
		`{to: "192.0.2.1:1/tcp", expect: acept}`:                                       `did you mean "accept"?`,
		`{expect: block}`:                                                              "2:5: cases[0]: want domain, to, or both",
		`{to: 192.0.2.1, expect: block}`:                                               "2:10: cases[0]/to: want ADDR:PORT/PROTO",
		`{domain: "*.a.example", expect: block}`:                                       `cases[0]/domain: want a domain name, got "*.a.example"`,
		`{domain: 192.0.2.1, expect: block}`:                                           `cases[0]/domain: want a domain name, got "192.0.2.1"`,
		`{program: curl, domain: a.example, expect: block}`:                            `cases[0]/program: want the absolute path of a program, got "curl"`,
		`{user: 1000, domain: a.example, expect: block}`:                               "cases[0]/user: want a program as well",
		`{program: /bin/a, user: no-such-user-here, domain: a.example, expect: block}`: "cases[0]/user: user: unknown user no-such-user-here",
		`{domain: a.example, direction: in, expect: block}`:                            `did you mean "inbound"?`,
		`{domain: a.example, rating: dangerous, expect: block}`:                        `cases[0]/rating: want trusted, untrusted, danger, got "dangerous"`,
		`{domain: a.example, from: 192.0.2.1, expect: block}`:                          "cases[0]/from: stands for the other end of an inbound flow",
		`{direction: inbound, to: "192.0.2.1:1/tcp", expect: block}`:                   "2:5: cases[0]: an inbound flow needs from: ADDR",
		`{direction: inbound, from: x, to: "192.0.2.1:1/tcp", expect: block}`:          `cases[0]/from: want an address, got "x"`,
		`{direction: inbound, domain: a.example, from: 192.0.2.1, expect: block}`:      "cases[0]/domain: an inbound flow has no name",
		`{to: "192.0.2.1:1/tcp", country: us, expect: block}`:                          `did you mean "US"?`,
		`{to: "192.0.2.1:1/tcp", country: LAN, expect: block}`:                         `cases[0]/country: want a country such as DE, got "LAN"`,
		`{to: "192.0.2.1:1/tcp", asn: 64500, expect: block}`:                           "cases[0]/asn: ",
		`{to: "192.0.2.1:1/tcp", lists: "a,,b", expect: block}`:                        "cases[0]/lists: ",
		`{domain: a.example, expect: block, rule: "- us"}`:                             "cases[0]/rule: column 3: ",
		`{domain: a.example, expect: block, colour: red}`:                              "cases[0]/colour: unknown key",
		`{domain: a.example, expect: block}]`:                                          "YAML: ",
	}
	for text, want := range table {
		policy, file := inFiles(t, casesPolicy, "cases:\n  - "+text+"\n")
		out, _, code := execute(t, "check", policy, "--cases", file)
		if code != exitConfig || !strings.Contains(out, want) || !strings.Contains(out, file+":") {
			t.Errorf("%s: exit code %d, want %q in\n%s", text, code, want, out)
		}
		out, _, code = execute(t, "check", policy, "--json", "--cases", file)
		var report checkReport
		if err := json.Unmarshal([]byte(out), &report); err != nil || code != exitConfig || report.OK || len(report.Errors) == 0 {
			t.Errorf("%s: exit code %d, %v: %s", text, code, err, out)
		}
	}
	policy, _ := inFiles(t, casesPolicy, "")
	if out, _, code := execute(t, "check", policy, "--cases", "/nonexistent.yaml"); code != exitConfig || !strings.Contains(out, "/nonexistent.yaml: cannot be read: no such file") {
		t.Errorf("exit code %d: %s", code, out)
	}
	broken, file := inFiles(t, "version: 1\nfilter: {endpoints: [\"+ us\"]}\n", "cases: [{domain: a.example, expect: block}]\n")
	if out, _, code := execute(t, "check", broken, "--cases", file); code != exitConfig || !strings.Contains(out, broken+":2:25: filter/endpoints[0]") {
		t.Errorf("exit code %d: %s", code, out)
	}
}

// TestCheckLint: what the lint finds is a warning, which does not fail a check.
func TestCheckLint(t *testing.T) {
	policy, _ := inFiles(t, "version: 1\nfilter:\n  endpoints:\n    - \"- .example\"\n    - \"+ a.example\"\n", "")
	out, _, code := execute(t, "check", policy)
	if code != 0 || !strings.Contains(out, policy+":5:8: filter/endpoints[1]: never decides: \"- .example\" in line 4 comes first") || !strings.Contains(out, "       |        ^\n") {
		t.Errorf("exit code %d:\n%s", code, out)
	}
	out, _, code = execute(t, "check", "--json", policy)
	var report checkReport
	if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 || !report.OK || len(report.Warnings) != 1 || report.Warnings[0].Line != 5 {
		t.Errorf("exit code %d, %v: %s", code, err, out)
	}
}

// TestCasesKnowLists: cases are decided with the lists of the configuration, unless one says itself
// what is known of the other end.
func TestCasesKnowLists(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{
		"ads": "ads.example\n198.51.100.7\n", "fix": "fine.example\n",
		"gatun.yaml": "version: 1\nfilter: {endpoints: [\"+ wanted.ads.example\"]}\nlists:\n  - {id: ads, category: ADS, format: domains, path: " + dir + "/ads}\n" +
			"  - {id: fix, category: UNBREAK, format: domains, path: " + dir + "/fix}\n",
		"cases.yaml": `cases:
  - {domain: ads.example, expect: block}
  - {domain: x.ads.example, expect: block}
  - {domain: wanted.ads.example, expect: accept, rule: "+ wanted.ads.example"}
  - {domain: clean.example, to: "192.0.2.1:443/tcp", expect: accept}
  - {domain: clean.example, to: "198.51.100.7:443/tcp", expect: block}
  - {domain: clean.example, to: "192.0.2.1:443/tcp", lists: ads, expect: block}
  - {domain: clean.example, to: "192.0.2.1:443/tcp", lists: MAL, expect: block}
  - {domain: clean.example, to: "192.0.2.1:443/tcp", lists: "ads,fix", expect: accept}
  - {domain: ads.example, to: "192.0.2.1:443/tcp", country: DE, expect: accept}
`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg, _, err := check(configSource(filepath.Join(dir, "gatun.yaml")))
	if err != nil {
		t.Fatal(err)
	}
	report, err := runCases(cfg, filepath.Join(dir, "cases.yaml"))
	if err != nil || report.Cases != 9 {
		t.Fatal(report.Cases, err)
	}
	for _, f := range report.Failed {
		t.Errorf("line %d: %s: expected %s, got %s: %s", f.Line, f.About, f.Expected, f.Got, f.Why.Reason)
	}
}
