package interception

import (
	"errors"
	"testing"
	"time"

	"pgregory.net/rapid"

	"gatun/attribution"
)

func take(t *testing.T, b *FileBudget, o OwnerKey, n int) {
	t.Helper()
	for i := range n {
		if err := b.Acquire(o); err != nil {
			t.Fatalf("file %d of %d: %v", i+1, n, err)
		}
	}
}

func TestFileBudget(t *testing.T) {
	flood, quiet, third := OwnerKey{PID: 1}, OwnerKey{PID: 2}, OwnerKey{PID: 3}
	b := NewFileBudget(20000)
	take(t, b, quiet, 10)
	take(t, b, flood, 17990)
	if err := b.Acquire(flood); !errors.Is(err, ErrFileBudget) {
		t.Errorf("at 90 %% the largest program got more: %v", err)
	}
	take(t, b, quiet, 500)
	take(t, b, third, 20000-reservedFiles-18500)
	for _, o := range []OwnerKey{flood, quiet, third, {PID: 4}} {
		if err := b.Acquire(o); !errors.Is(err, ErrFileBudget) {
			t.Errorf("%v took from the reserve: %v", o, err)
		}
	}
	if err := b.Retake(flood); err == nil {
		t.Error("Retake took from the reserve")
	}
	b.Release(flood)
	if err := b.Retake(flood); err != nil {
		t.Errorf("Retake of what was given back: %v", err)
	}
	for range 17990 {
		b.Release(flood)
	}
	take(t, b, flood, 1000)
}

func TestFileBudgetSmallLimits(t *testing.T) {
	for _, tc := range []struct{ limit, alone int }{{1024, 729}, {512, 243}, {300, 41}, {257, 1}, {100, 1}} {
		b := NewFileBudget(tc.limit)
		n := 0
		for b.Acquire(OwnerKey{PID: 1}) == nil {
			n++
		}
		if n < tc.alone-1 || n > tc.alone || n+reservedFiles > max(tc.limit, reservedFiles+1) {
			t.Errorf("limit %d: one program gets %d files, want about %d and %d left over", tc.limit, n, tc.alone, reservedFiles)
		}
	}
}

// TestFileBudgetSums: whatever happens, the sums agree and the limits hold.
func TestFileBudgetSums(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		limit := rapid.IntRange(0, 600).Draw(t, "limit")
		b := NewFileBudget(limit)
		model, sum := map[OwnerKey]int{}, 0
		for range rapid.IntRange(0, 400).Draw(t, "steps") {
			o := OwnerKey{PID: rapid.IntRange(0, 3).Draw(t, "owner")}
			if rapid.IntRange(0, 3).Draw(t, "what") == 0 {
				b.Release(o)
				if model[o] > 0 {
					model[o]--
					sum--
				}
			} else if b.Acquire(o) == nil {
				model[o]++
				sum++
			} else if all, _ := b.Used(o); all < b.soft {
				t.Fatalf("refused at %d, below %d", all, b.soft)
			}
			if all, own := b.Used(o); all != sum || own != model[o] || all > b.hard {
				t.Fatalf("used %d (want %d), own %d (want %d), limit %d", all, sum, own, model[o], b.hard)
			}
		}
	})
}

func TestKeyOf(t *testing.T) {
	at := time.Unix(1000, 5)
	p := &attribution.Process{PID: 7, Started: at}
	q := &attribution.Process{PID: 7, Started: at.Add(time.Second)}
	if KeyOf(attribution.Owner{Process: p}) == KeyOf(attribution.Owner{Process: q}) {
		t.Error("a process ID that was used again is the same program")
	}
	if KeyOf(attribution.Owner{Process: p}) != (OwnerKey{PID: 7, Started: at.UnixNano()}) {
		t.Error("key of a process")
	}
	if KeyOf(attribution.Unidentified("gone")) != (OwnerKey{}) || KeyOf(attribution.Owner{}) != (OwnerKey{}) {
		t.Error("key of nobody")
	}
}
