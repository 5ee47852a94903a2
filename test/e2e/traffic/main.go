// Command traffic keeps numbered messages going between pods and tells what happened to them: lost or reset
// connections, and the longest time without an answer. It measures interruptions, not throughput.
//
//	traffic serve PORT                    echo over TCP and UDP until killed
//	traffic stream CONNS ADDR…            CONNS TCP connections and one UDP flow to each address
//	traffic knock INTERVAL ADDR…          a new TCP connection and a datagram of a new socket to each address at each interval
//	traffic flood COUNT ADDR              COUNT datagrams, as fast as it goes
//	traffic count PORT…                   the packets to these ports that arrive here; told at each line of standard input
//	traffic pods, traffic heir            play the container runtime on a node, see runtime.go and heir.go
//
// stream and knock end when their standard input does. They write one JSON line to standard output as soon as they are at work, {"ready":true}, and one
// with their report at the end.
package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"
)

// interval is the time between two messages of a flow.
const interval = 10 * time.Millisecond

// Report is what stream prints at the end.
type Report struct {
	Flows    int            `json:"flows"`
	Messages int            `json:"messages"` // answered
	Failed   []string       `json:"failed"`   // TCP connections that ended, with the reason
	Lost     int            `json:"lost"`     // UDP messages without an answer
	LostTo   map[string]int `json:"lostTo"`   // the same by destination
	Gap      time.Duration  `json:"gap"`      // longest time between two answers of a TCP flow, in ns
	Last     time.Time      `json:"last"`     // when the last answer came to any TCP flow
	LastUDP  time.Time      `json:"lastUDP"`  // and to any UDP flow
}

// farewell is how long a flow waits for its last answer when it is told to end.
const farewell = 2 * time.Second

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "traffic: %v\n", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	switch {
	case len(args) == 2 && args[0] == "serve":
		return serve(args[1])
	case len(args) >= 3 && args[0] == "stream":
		conns, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return stream(conns, args[2:])
	case len(args) >= 3 && args[0] == "knock":
		interval, err := time.ParseDuration(args[1])
		if err != nil {
			return err
		}
		return knock(interval, args[2:])
	case len(args) == 3 && args[0] == "flood":
		n, err := strconv.Atoi(args[1])
		if err != nil {
			return err
		}
		return flood(n, args[2])
	case len(args) >= 2 && args[0] == "count":
		return count(args[1:])
	case len(args) == 1 && args[0] == "pods":
		return addPods()
	case len(args) == 1 && args[0] == "heir":
		return inherit()
	}
	return errors.New("usage: traffic serve PORT | stream CONNS ADDR… | knock INTERVAL ADDR… | flood COUNT ADDR | count PORT… | pods | heir")
}

func serve(port string) error {
	udp, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	go func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := udp.ReadFrom(buf)
			if err != nil {
				return
			}
			_, _ = udp.WriteTo(buf[:n], from)
		}
	}()
	l, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			_, _ = io.Copy(c, c)
		}()
	}
}

// stream connects everything, says that it is ready, exchanges messages until standard input ends, and reports.
func stream(conns int, addresses []string) error {
	var tcp, udp []net.Conn
	for _, a := range addresses {
		for range conns {
			c, err := net.DialTimeout("tcp", a, 5*time.Second)
			if err != nil {
				return err
			}
			defer c.Close()
			tcp = append(tcp, c)
		}
		c, err := net.Dial("udp", a)
		if err != nil {
			return err
		}
		defer c.Close()
		udp = append(udp, c)
	}
	out := json.NewEncoder(os.Stdout)
	if err := out.Encode(map[string]bool{"ready": true}); err != nil {
		return err
	}
	end := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(end)
		for _, c := range tcp { // one that waits for an answer does not do so for ever
			_ = c.SetReadDeadline(time.Now().Add(farewell))
		}
	}()
	total := Report{Flows: len(tcp) + len(udp), Failed: []string{}, LostTo: map[string]int{}}
	var mu sync.Mutex
	var wg sync.WaitGroup
	add := func(r Report) {
		mu.Lock()
		defer mu.Unlock()
		total.Messages += r.Messages
		total.Lost += r.Lost
		total.Gap = max(total.Gap, r.Gap)
		if r.Last.After(total.Last) {
			total.Last = r.Last
		}
		if r.LastUDP.After(total.LastUDP) {
			total.LastUDP = r.LastUDP
		}
		total.Failed = append(total.Failed, r.Failed...)
	}
	for _, c := range tcp {
		wg.Go(func() { add(converse(c, end)) })
	}
	for _, c := range udp {
		wg.Go(func() {
			r := shout(c, end)
			add(r)
			if r.Lost > 0 {
				mu.Lock()
				defer mu.Unlock()
				total.LostTo[c.RemoteAddr().String()] += r.Lost
			}
		})
	}
	wg.Wait()
	slices.Sort(total.Failed)
	return out.Encode(total)
}

// converse sends numbered lines over TCP and waits for each to come back.
func converse(c net.Conn, end <-chan struct{}) (r Report) {
	in := bufio.NewReader(c)
	last := time.Now()
	for n := 0; ; n++ {
		_ = c.SetDeadline(time.Now().Add(30 * time.Second))
		want := strconv.Itoa(n) + "\n"
		_, err := io.WriteString(c, want)
		var got string
		if err == nil {
			got, err = in.ReadString('\n')
		}
		if err == nil && got != want {
			err = fmt.Errorf("answer is %q, want %q", got, want)
		}
		if err != nil {
			r.Failed = append(r.Failed, fmt.Sprintf("%s to %s: %v", c.LocalAddr(), c.RemoteAddr(), err))
			return r
		}
		now := time.Now()
		r.Gap = max(r.Gap, now.Sub(last)-interval)
		last, r.Last = now, now
		r.Messages++
		select {
		case <-end:
			return r
		case <-time.After(interval):
		}
	}
}

// shout sends numbered datagrams and counts the answers. What is on its way at the end has a second to arrive.
func shout(c net.Conn, end <-chan struct{}) (r Report) {
	answered := make(chan int)
	var last time.Time
	go func() {
		seen := map[string]bool{}
		buf := make([]byte, 64)
		for {
			n, err := c.Read(buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				answered <- len(seen)
				return
			}
			if err == nil {
				last = time.Now()
				seen[string(buf[:n])] = true
			}
		}
	}()
	for sent := 1; ; sent++ {
		_, _ = io.WriteString(c, strconv.Itoa(sent))
		select {
		case <-end:
			_ = c.SetReadDeadline(time.Now().Add(time.Second))
			r.Messages = <-answered
			r.LastUDP = last
			r.Lost = sent - r.Messages
			return r
		case <-time.After(interval):
		}
	}
}
