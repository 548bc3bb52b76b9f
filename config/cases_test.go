package config

import (
	"errors"
	"strings"
	"testing"
)

func TestParseItems(t *testing.T) {
	items, err := ParseItems("c.yaml", []byte("# cases\ncases:\n  - {program: /bin/a, user: 1000}\n  - program: '/bin/b'\n    rule: \"- NO\"\n"), "cases", []string{"program", "user", "rule"})
	if err != nil || len(items.List) != 2 {
		t.Fatalf("got %+v, %v", items, err)
	}
	first, second := items.List[0], items.List[1]
	if first.Values["user"].Text != "1000" || first.Line != 3 || first.Col != 5 || len(first.Values) != 2 {
		t.Errorf("got %+v", first)
	}
	if v := second.Values["rule"]; v.Text != "- NO" || v.Position != (Position{"c.yaml", 5, 12}) {
		t.Errorf("got %+v", v)
	}
	if p := items.Problem(second.Values["rule"].Position, "k", "m", "s"); p.Excerpt != `    rule: "- NO"` {
		t.Errorf("excerpt %q", p.Excerpt)
	}
}

func TestParseItemsErrors(t *testing.T) {
	for text, want := range map[string]string{
		"":                                       "c.yaml:1:1: the file is empty; want cases: and a list",
		"# nothing":                              "c.yaml:1:1: the file is empty; want cases: and a list",
		"- a":                                    "c.yaml:1:1: want cases: and a list, got a list",
		"{}":                                     "c.yaml:1:1: cases: missing; want a list",
		"case: []":                               `c.yaml:1:1: case: unknown key (did you mean "cases"?)`,
		"cases: []":                              "c.yaml:1:8: cases: want a list that is not empty, got a list",
		"cases:":                                 "c.yaml:1:7: cases: want a list that is not empty, got nothing",
		"cases: [a]":                             "c.yaml:1:9: cases[0]: want keys such as program or user, got \"a\"",
		"cases: [{progam: a}]":                   `c.yaml:1:10: cases[0]/progam: unknown key (did you mean "program"?)`,
		"cases: [{program: [a]}]":                "c.yaml:1:19: cases[0]/program: want text, got a list",
		"cases: [{program: }]":                   "c.yaml:1:19: cases[0]/program: want text, got nothing",
		"cases: [{user: 1.5}]":                   "c.yaml:1:16: cases[0]/user: want text, got the number 1.5",
		"cases: [{user: 1, user: 2}]":            "c.yaml:1:19: cases[0]/user: set twice; it is already set in line 1",
		"cases: [{user: 1}]\ncases: [{user: 1}]": "c.yaml:2:1: cases: set twice; it is already set in line 1",
		"cases: [{user: 1}":                      "c.yaml:1: YAML: did not find expected ',' or ']'; look here and further down in this block",
		"cases: [{user: 1}]\n---\na: 1":          "c.yaml:2:1: a second YAML document begins here; want one document in a file",
		"cases: \xff":                            "c.yaml:1: not UTF-8 text: the file is damaged, or has another encoding",
	} {
		_, err := ParseItems("c.yaml", []byte(text), "cases", []string{"program", "user"})
		var problems Problems
		if !errors.As(err, &problems) || len(problems) != 1 || problems[0].Error() != want {
			t.Errorf("%q:\n got %v\nwant %s", text, err, want)
		}
	}
	_, err := ParseItems("c.yaml", []byte("cases:\n  - {progam: a}\n  - {user: [1]}\n"), "cases", []string{"program", "user"})
	if got := strings.Count(err.Error(), "\n"); got != 1 {
		t.Errorf("not all problems at once: %v", err)
	}
}

func TestNearest(t *testing.T) {
	if got := Nearest("TPC", []string{"UDP", "TCP"}); got != "TCP" {
		t.Errorf("got %q", got)
	}
}
