package main

import (
	"errors"
	"flag"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// insistCommand sends datagrams, one per millisecond, until one of them is answered. It says "answered",
// or "answered-after-refusals" where some were refused before, or "silence" or "refused".
func insistCommand(args []string) (result, error) {
	length := time.Minute
	rest, err := flags("insist", args, 1, func(fs *flag.FlagSet) { fs.DurationVar(&length, "for", length, "how long at most") })
	if err != nil {
		return result{}, err
	}
	c, err := net.Dial("udp", rest[0])
	if err != nil {
		return failed(err), nil
	}
	defer c.Close()
	sent, refused, got := 0, 0, make([]byte, 64)
	outcome := func(answered bool) result {
		name := map[bool]map[bool]string{true: {true: "answered-after-refusals", false: "answered"}, false: {true: "refused", false: "silence"}}[answered][refused > 0]
		return result{Result: name, Extra: map[string]float64{"sent": float64(sent), "refused": float64(refused)}}
	}
	for end := time.Now().Add(length); time.Now().Before(end); sent++ {
		if _, err := c.Write([]byte("insist")); errors.Is(err, unix.ECONNREFUSED) {
			refused++
		} else if err != nil {
			return failed(err), nil
		}
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		switch _, err := c.Read(got); {
		case err == nil:
			return outcome(true), nil
		case errors.Is(err, unix.ECONNREFUSED):
			refused++
		case !errors.Is(err, os.ErrDeadlineExceeded):
			return failed(err), nil
		}
	}
	return outcome(false), nil
}
