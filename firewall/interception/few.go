package interception

import "iter"

// few is a map that mostly has one entry, which takes no memory of its own. The zero value is empty.
type few[K comparable, V any] struct {
	key   K
	value V
	one   bool // key and value are an entry
	more  map[K]V
}

func (f *few[K, V]) get(k K) (v V, found bool) {
	if f.one && f.key == k {
		return f.value, true
	}
	v, found = f.more[k]
	return v, found
}

func (f *few[K, V]) put(k K, v V) {
	_, among := f.more[k]
	switch {
	case !among && (!f.one || f.key == k):
		f.key, f.value, f.one = k, v, true
	case f.more == nil:
		f.more = map[K]V{k: v}
	default:
		f.more[k] = v
	}
}

func (f *few[K, V]) remove(k K) {
	if f.one && f.key == k {
		var none few[K, V]
		f.key, f.value, f.one = none.key, none.value, false
		return
	}
	delete(f.more, k)
}

func (f *few[K, V]) len() int {
	if f.one {
		return len(f.more) + 1
	}
	return len(f.more)
}

// all lists the entries in any order.
func (f *few[K, V]) all() iter.Seq2[K, V] {
	return func(yield func(K, V) bool) {
		if f.one && !yield(f.key, f.value) {
			return
		}
		for k, v := range f.more {
			if !yield(k, v) {
				return
			}
		}
	}
}
