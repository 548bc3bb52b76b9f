package main

import (
	"context"
	"net"
	"strings"
	"time"
)

// lookupCommand resolves a name with Go's own resolver, or with the libc's where the helper was
// built with cgo and GODEBUG=netdns=cgo: "lookup ip4|ip6 NAME".
func lookupCommand(args []string) (result, error) {
	rest, err := flags("lookup", args, 2, nil)
	if err != nil {
		return result{}, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, rest[0], rest[1])
	if err != nil {
		return result{Result: "error", Error: err.Error()}, nil
	}
	var list []string
	for _, a := range addrs {
		list = append(list, a.Unmap().String())
	}
	return result{Result: "NOERROR", Data: strings.Join(list, " ")}, nil
}
