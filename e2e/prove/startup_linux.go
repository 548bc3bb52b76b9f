package main

import (
	"context"
	"errors"
	"fmt"
	"sort"
	"time"

	"gatun/e2e/lab"
)

// proveStartup runs a command that does nothing, plainly and through `gatun run`, alternately. In
// its small size, on a machine with other work, what counts is the time that the processor was used.
func proveStartup(b *bench) (err error) {
	l, err := b.lab(lab.Options{})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	env := lab.Spec{User: lab.Nobody, Env: []string{"XDG_RUNTIME_DIR=" + l.Dir, "HOME=/"}}
	var plain, through, plainCPU, throughCPU []float64
	for i := range b.size(25, 9) {
		for j, command := range [][]string{{"true"}, {b.bins.Gatun, "run", "--", "true"}} {
			cmd := l.Host.Command(context.Background(), env, command...)
			begin := time.Now()
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("%v: %w: %s", command, err, out)
			}
			ms := float64(time.Since(begin).Microseconds()) / 1000
			cpu := float64((cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Microseconds()) / 1000
			switch {
			case i == 0: // warm-up
			case j == 0:
				plain, plainCPU = append(plain, ms), append(plainCPU, cpu)
			default:
				through, throughCPU = append(through, ms), append(throughCPU, cpu)
			}
		}
	}
	b.note("plain, p50", fmt.Sprintf("%.1f ms", median(plain)))
	added, addedCPU := median(through)-median(plain), median(throughCPU)-median(plainCPU)
	if b.small {
		b.note("added by gatun run, p50", fmt.Sprintf("%.1f ms", added))
		b.atMost("processor time added by gatun run, p50", addedCPU, 400, "ms")
		return nil
	}
	b.atMost("added by gatun run, p50", added, 40, "ms")
	b.note("processor time added by gatun run, p50", fmt.Sprintf("%.1f ms", addedCPU))
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
