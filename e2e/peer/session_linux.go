package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"time"
)

// session runs one child per line of input (a JSON list of arguments) and prints the child's
// line, so that one `gatun run` can hold many programs, each with a pid of its own.
func session(in io.Reader, out io.Writer) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	lines.Buffer(make([]byte, 1<<20), 1<<20)
	for lines.Scan() {
		var args []string
		if err := json.Unmarshal(lines.Bytes(), &args); err != nil {
			return err
		}
		cmd := exec.Command(self, args...)
		if args[0] == "exec" {
			cmd = exec.Command(args[1], args[2:]...)
		}
		cmd.Stderr = os.Stderr
		line, err := cmd.Output()
		if args[0] == "exec" {
			line, err = execLine(line, err)
		}
		if err != nil {
			return fmt.Errorf("%q: %w", args, err)
		}
		if _, err := out.Write(line); err != nil {
			return err
		}
	}
	return lines.Err()
}

func execLine(out []byte, err error) ([]byte, error) {
	r := result{Result: "ok", Data: string(out)}
	if err != nil {
		r.Result, r.Error = "failed", err.Error()
	}
	b, err := json.Marshal(r)
	return append(b, '\n'), err
}

// flockCommand runs a list of programs, several at a time: "flock -at 8 FILE", where each line
// of FILE is a JSON list of path and arguments. It prints the children's lines to FILE.out.
func flockCommand(args []string) (result, error) {
	at := 8
	rest, err := flags("flock", args, 1, intFlag(&at, "at", "children at a time"))
	if err != nil {
		return result{}, err
	}
	b, err := os.ReadFile(rest[0])
	if err != nil {
		return result{}, err
	}
	out, err := os.Create(rest[0] + ".out")
	if err != nil {
		return result{}, err
	}
	defer out.Close()
	begin := time.Now()
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		fails int
	)
	slots := make(chan struct{}, at)
	for _, line := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		var argv []string
		if err := json.Unmarshal([]byte(line), &argv); err != nil {
			return result{}, err
		}
		slots <- struct{}{}
		group.Go(func() {
			defer func() { <-slots }()
			text, err := exec.Command(argv[0], argv[1:]...).Output()
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				fails++
			}
			_, _ = out.Write(text)
		})
	}
	group.Wait()
	return result{Result: "done", MS: float64(time.Since(begin).Milliseconds()), Extra: map[string]float64{"failed": float64(fails)}}, nil
}
