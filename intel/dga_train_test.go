package intel

import (
	"bufio"
	"flag"
	"math"
	"os"
	"strings"
	"testing"
)

var trainFrom = flag.String("train", "", "a file of names, one a line, from which trigrams.bin is made anew")

// TestTrain makes the table of Generated; it is a tool rather than a test.
func TestTrain(t *testing.T) {
	if *trainFrom == "" {
		t.Skip("only with -train FILE: it writes trigrams.bin")
	}
	if err := os.WriteFile("trigrams.bin", train(readNames(t, *trainFrom)), 0o644); err != nil {
		t.Fatal(err)
	}
}

func readNames(tb testing.TB, path string) []string {
	tb.Helper()
	f, err := os.Open(path)
	if err != nil {
		tb.Fatal(err)
	}
	defer f.Close()
	var names []string
	for s := bufio.NewScanner(f); s.Scan(); {
		if name := s.Text(); name != "" && name[0] != '#' {
			names = append(names, name)
		}
	}
	return names
}

// train counts trigrams of the labels that were registered, and estimates how surprising each
// is; what was rarely or never seen borrows from its bigram, and that from its last symbol.
func train(names []string) []byte {
	const borrow3, borrow2 = 80, 10
	var (
		three [symbols][symbols][symbols]float64
		two   [symbols][symbols]float64
		one   [symbols]float64
		total float64
		seen  = map[string]bool{}
	)
	for _, name := range names {
		label := registeredLabel(strings.TrimPrefix(name, "*."))
		if label == "" || strings.HasPrefix(label, idnPrefix) || strings.Trim(label, letters+"0123456789-_") != "" {
			continue
		}
		key := label + name[strings.LastIndexByte(name, '.'):]
		if seen[key] {
			continue
		}
		seen[key] = true
		a, b := borderSymbol, borderSymbol
		for i := 0; i <= len(label); i++ {
			c := borderSymbol
			if i < len(label) {
				c = symbolOf(label[i])
			}
			three[a][b][c]++
			two[b][c]++
			one[c]++
			total++
			a, b = b, c
		}
	}
	var table []byte
	for a := range symbols {
		for b := range symbols {
			var sum3, sum2 float64
			for c := range symbols {
				sum3 += three[a][b][c]
				sum2 += two[b][c]
			}
			for c := range symbols {
				p1 := (one[c] + 1) / (total + symbols)
				p2 := (two[b][c] + borrow2*p1) / (sum2 + borrow2)
				p3 := (three[a][b][c] + borrow3*p2) / (sum3 + borrow3)
				table = append(table, byte(min(255, math.Round(-math.Log2(p3)*bitScale))))
			}
		}
	}
	return table
}
