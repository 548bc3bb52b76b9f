package dns

import "context"

// waitsKey is where a context has what Waits gave it.
type waitsKey struct{}

// Waits returns a context in which a query calls f before it waits: for a place, for somebody else's
// answer, or for intelligence. A query that is answered at once, from the cache or by a denial, does
// not call it. So whoever serves queries one after another can do so until one waits, and then let
// somebody else go on. f may be called several times, by the goroutine that serves.
func Waits(ctx context.Context, f func()) context.Context {
	return context.WithValue(ctx, waitsKey{}, f)
}

// waits is called before waiting.
func waits(ctx context.Context) {
	if f, ok := ctx.Value(waitsKey{}).(func()); ok {
		f()
	}
}
