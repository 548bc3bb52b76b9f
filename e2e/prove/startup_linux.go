package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"gatun/e2e/lab"
)

// proveStartup runs a command that does nothing, plainly and through `gatun run`, alternately.
func proveStartup(b *bench) (err error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	env := lab.Spec{User: lab.Nobody, Env: []string{"XDG_RUNTIME_DIR=" + l.Dir, "HOME=/"}}
	var plain, through []float64
	for i := range b.size(25, 9) {
		for j, command := range [][]string{{"true"}, {b.bins.Gatun, "run", "--", "true"}} {
			cmd := l.Host.Command(context.Background(), env, command...)
			begin := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w: %s", command, err, out)
			}
			ms := float64(time.Since(begin).Microseconds()) / 1000
			switch {
			case i == 0: // warm-up
			case j == 0:
				plain = append(plain, ms)
			default:
				through = append(through, ms)
			}
		}
	}
	limit := 40.0
	if b.small {
		limit = 120 // a busy machine; the full proof has the true limit
	}
	b.note("plain, p50", fmt.Sprintf("%.1f ms", median(plain)))
	b.atMost("added by gatun run, p50", median(through)-median(plain), limit, "ms")
	return nil
}

func median(v []float64) float64 {
	s := append([]float64(nil), v...)
	sort.Float64s(s)
	if len(s) == 0 {
		return 0
	}
	return s[len(s)/2]
}
