//go:build !linux

package netenv

func open(o Options) (source, error) { return newPoller(o), nil }
