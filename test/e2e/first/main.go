// Command first is the first thing that a pod runs in tests of policy: from its first instruction on it connects to those that it may
// reach and to those that it may not, says what came of it, and waits to be ended.
//
//	first -may=ADDR,… -not=ADDR,…     ADDR: HOST:PORT of an echo server of TCP and UDP
//
// It prints one line, a Report in JSON.
package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"net"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	// atOnce is how long the first packet and its answer may take. A kernel sends a SYN again after a second: that is too late.
	atOnce = 900 * time.Millisecond
	// hostile is for how long what is forbidden is tried.
	hostile = 3 * time.Second
)

// Report is what is printed.
type Report struct {
	Refused []string      // what may be reached and was not, with the first packet
	Reached []string      // what may not be reached, and was
	Tries   int           // of what may not be reached
	Slowest time.Duration // answer of what may be reached, ns
}

func main() {
	may := flag.String("may", "", "")
	not := flag.String("not", "", "")
	flag.Parse()
	r := probe(strings.Split(*may, ","), strings.Split(*not, ","))
	if err := json.NewEncoder(os.Stdout).Encode(r); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, syscall.SIGTERM, syscall.SIGINT)
	<-end
}

// probe tries all addresses at once, by both protocols.
func probe(may, not []string) Report {
	r := Report{Refused: []string{}, Reached: []string{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, network := range []string{"tcp", "udp"} {
		for _, to := range may {
			wg.Go(func() {
				begin := time.Now()
				err := exchange(network, to, atOnce)
				mu.Lock()
				defer mu.Unlock()
				r.Slowest = max(r.Slowest, time.Since(begin))
				if err != nil {
					r.Refused = append(r.Refused, fmt.Sprintf("%s %s: %v", network, to, err))
				}
			})
		}
		for _, to := range not {
			wg.Go(func() {
				tries, reached := 0, false
				for end := time.Now().Add(hostile); time.Now().Before(end) && !reached; tries++ {
					reached = exchange(network, to, 100*time.Millisecond) == nil
				}
				mu.Lock()
				defer mu.Unlock()
				r.Tries += tries
				if reached {
					r.Reached = append(r.Reached, fmt.Sprintf("%s %s at try %d", network, to, tries))
				}
			})
		}
	}
	wg.Wait()
	slices.Sort(r.Refused)
	slices.Sort(r.Reached)
	return r
}

// exchange sends a message and waits for it to come back.
func exchange(network, to string, limit time.Duration) error {
	end := time.Now().Add(limit)
	c, err := net.DialTimeout(network, to, limit)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(end); err != nil {
		return err
	}
	if _, err := c.Write([]byte("first\n")); err != nil {
		return err
	}
	_, err = c.Read(make([]byte, 16))
	return err
}
