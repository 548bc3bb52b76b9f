package config

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode/utf8"
)

// Position is a place in a file that a person wrote. Line and Col count from 1, Col in
// characters; 0 means unknown. For values from elsewhere File names the source, for example
// an environment variable, and Line is 0.
type Position struct {
	File string `json:"file"`
	Line int    `json:"line"`
	Col  int    `json:"col"`
}

// String formats p as file:line:col, leaving out what is unknown.
func (p Position) String() string {
	switch {
	case p.Line == 0:
		return p.File
	case p.File == "":
		return fmt.Sprintf("line %d", p.Line)
	case p.Col == 0:
		return fmt.Sprintf("%s:%d", p.File, p.Line)
	default:
		return fmt.Sprintf("%s:%d:%d", p.File, p.Line, p.Col)
	}
}

// Problem is one thing that is wrong, or doubtful, in what a person wrote.
type Problem struct {
	Position
	Key        string // path of the setting or key, "" where the file as a whole is meant
	Message    string // what is wanted and what was found
	Suggestion string // what was probably meant, "" if nothing is near
	Excerpt    string // the line of the file, "" if unknown
	Cause      error  // ErrPinned, ErrUnknown or nil
}

// What an Edit asks for may be refused for a cause of its own; errors.Is tells.
var (
	ErrPinned  = errors.New("set where only a person can change it")
	ErrUnknown = errors.New("no such setting or profile")
)

// Unwrap returns the cause.
func (p Problem) Unwrap() error { return p.Cause }

// Error formats p on one line: file:line:col: key: message (did you mean "…"?).
func (p Problem) Error() string {
	s := p.headline()
	if p.Suggestion != "" {
		s += fmt.Sprintf(" (did you mean %q?)", p.Suggestion)
	}
	return s
}

func (p Problem) headline() string {
	var parts []string
	for _, s := range []string{p.Position.String(), p.Key, p.Message} {
		if s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, ": ")
}

// Render formats p for `check`: the message, the line it is about with a caret under the
// place, and the suggestion.
func (p Problem) Render() string {
	var b strings.Builder
	b.WriteString(p.headline())
	b.WriteByte('\n')
	if p.Excerpt != "" && p.Line > 0 {
		line, col := window(p.Excerpt, p.Col)
		fmt.Fprintf(&b, "%6d | %s\n", p.Line, line)
		if p.Col > 0 {
			fmt.Fprintf(&b, "       | %s^\n", blank(line, col-1))
		}
	}
	if p.Suggestion != "" {
		fmt.Fprintf(&b, "         did you mean %q?\n", p.Suggestion)
	}
	return b.String()
}

// window cuts a long line down to the part around col, so that a rule list on one line does
// not fill the screen. It returns col within that part.
func window(line string, col int) (string, int) {
	const width, before = 100, 60
	runes := []rune(line)
	if len(runes) <= width {
		return line, col
	}
	from := max(0, min(col-before, len(runes)-width))
	return string(runes[from:min(len(runes), from+width)]), col - from
}

// blank returns the white space that is as wide as the first n characters of line: tabs stay
// tabs, so that the caret stands under its character.
func blank(line string, n int) string {
	var b strings.Builder
	for _, r := range line {
		if n <= 0 {
			break
		}
		n--
		if r == '\t' {
			b.WriteRune(r)
		} else {
			b.WriteByte(' ')
		}
	}
	return b.String()
}

// Problems is everything that is wrong, as one error, sorted by position.
type Problems []Problem

// Error lists the problems, one per line.
func (ps Problems) Error() string {
	lines := make([]string, len(ps))
	for i, p := range ps {
		lines[i] = p.Error()
	}
	return strings.Join(lines, "\n")
}

// Unwrap returns the problems, for errors.Is and errors.As.
func (ps Problems) Unwrap() []error {
	list := make([]error, len(ps))
	for i, p := range ps {
		list[i] = p
	}
	return list
}

// Render formats all problems for `check`.
func (ps Problems) Render() string {
	var b strings.Builder
	for _, p := range ps {
		b.WriteString(p.Render())
	}
	return b.String()
}

// Sort orders ps by file, line and column, keeps the order of equal places, and returns ps.
func (ps Problems) Sort() Problems {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Col, b.Col))
	})
	return ps
}

// nearest returns the candidate that is most like word, or "" if none is near: at most a
// third of the letters differ. Case does not count as a difference.
func nearest(word string, candidates []string) string {
	best, bestDistance := "", 1+max(1, utf8.RuneCountInString(word)/3)
	lower := strings.ToLower(word)
	for _, c := range candidates {
		if d := distance(lower, strings.ToLower(c)); d < bestDistance {
			best, bestDistance = c, d
		}
	}
	return best
}

// distance is the number of letters to insert, delete, replace or swap with their neighbour
// to turn a into b (optimal string alignment).
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	if len(x) > 64 || len(y) > 64 {
		return max(len(x), len(y)) // no key is that long: do not spend time on it
	}
	before, last, row := make([]int, len(y)+1), make([]int, len(y)+1), make([]int, len(y)+1)
	for j := range last {
		last[j] = j
	}
	for i := 1; i <= len(x); i++ {
		row[0] = i
		for j := 1; j <= len(y); j++ {
			same := 1
			if x[i-1] == y[j-1] {
				same = 0
			}
			row[j] = min(last[j]+1, row[j-1]+1, last[j-1]+same)
			if i > 1 && j > 1 && x[i-1] == y[j-2] && x[i-2] == y[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(y)]
}
