package interception

import (
	"maps"
	"math/rand/v2"
	"testing"
)

// TestFew compares few with a map.
func TestFew(t *testing.T) {
	var f few[int, int]
	want := map[int]int{}
	for i := range 20000 {
		k := rand.IntN(1 + i/1000%5)
		if rand.IntN(2) == 0 {
			f.put(k, i)
			want[k] = i
		} else {
			f.remove(k)
			delete(want, k)
		}
		if got := maps.Collect(f.all()); !maps.Equal(got, want) || f.len() != len(want) {
			t.Fatalf("got %v (%d), want %v", got, f.len(), want)
		}
		v, found := f.get(k)
		if w, is := want[k]; v != w || found != is {
			t.Fatalf("%d: got %d, %v, want %d, %v", k, v, found, w, is)
		}
		for range f.all() {
			break
		}
	}
}

// TestFewOne: one entry costs nothing.
func TestFewOne(t *testing.T) {
	var f few[int, *int]
	n := new(int)
	if got := testing.AllocsPerRun(100, func() { f.put(1, n); f.remove(1) }); got > 0 {
		t.Errorf("%v allocations", got)
	}
}
