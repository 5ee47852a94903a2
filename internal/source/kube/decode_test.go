package kube

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net/http"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"weft/internal/convert/k8s"
	"weft/internal/convert/wire"
)

func response(contentType string, body []byte) *http.Response {
	return &http.Response{Header: http.Header{"Content-Type": {contentType}}, Body: io.NopCloser(bytes.NewReader(body))}
}

// frame is a watch event as the API server sends it.
func frame(typ string, object []byte) []byte {
	b, err := (&metav1.WatchEvent{Type: typ, Object: runtime.RawExtension{Raw: object}}).Marshal()
	if err != nil {
		panic(err)
	}
	return append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), b...)
}

func nodeType() k8s.Type { return k8s.Type{APIVersion: "v1", Kind: "Node"} }

func TestTruncatedStream(t *testing.T) {
	whole := append(frame(added, encode(node("n1", "10.244.1.0/24"), "v1", "Node", true)), frame(added, encode(node("n2", "10.244.2.0/24"), "v1", "Node", true))...)
	first := len(whole) / 2
	for n := range len(whole) + 1 {
		s := newStream(response(protobuf+";stream=watch", whole[:n]), core(nodeType()), nil)
		events := 0
		for {
			e, err := s.next()
			if err == nil {
				if events++; len(e.item.objs) != 1 || e.item.err != nil {
					t.Fatalf("at %d: event %+v", n, e)
				}
				continue
			}
			if atBorder := n == 0 || n == first || n == len(whole); atBorder != errors.Is(err, io.EOF) || events != n/first {
				t.Fatalf("cut at %d of %d: %d events, then %v", n, len(whole), events, err)
			}
			break
		}
	}
}

func TestReadyNeedsAWholeEvent(t *testing.T) {
	for _, proto := range []bool{true, false} {
		event := frame(added, encode(node("n1", "10.244.1.0/24"), "v1", "Node", true))
		typ := protobuf
		if !proto {
			typ = "application/json"
			event = []byte(`{"type":"ADDED","object":{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}}` + "\n")
		}
		s := newStream(response(typ, append(bytes.Clone(event), event[:len(event)-1]...)), core(nodeType()), nil)
		if _, err := s.next(); err != nil {
			t.Fatal(err)
		}
		if s.ready() {
			t.Errorf("proto %v: ready with an event that lacks a byte", proto)
		}
		s = newStream(response(typ, append(bytes.Clone(event), event...)), core(nodeType()), nil)
		if _, err := s.next(); err != nil {
			t.Fatal(err)
		}
		if !s.ready() {
			t.Errorf("proto %v: not ready with a whole event", proto)
		}
	}
}

func FuzzStream(f *testing.F) {
	obj := encode(node("n1", "10.244.1.0/24"), "v1", "Node", true)
	f.Add(frame(added, obj), true)
	f.Add(frame(failure, encode(&metav1.Status{Code: 410}, "v1", "Status", true)), true)
	f.Add([]byte(`{"type":"ADDED","object":{"apiVersion":"v1","kind":"Node","metadata":{"name":"n1"}}}`+"\n"), false)
	f.Fuzz(func(t *testing.T, raw []byte, proto bool) {
		if len(raw) >= 4 && proto && binary.BigEndian.Uint32(raw) > 1<<20 {
			return // a length that only costs memory
		}
		typ := map[bool]string{true: protobuf, false: "application/json"}[proto]
		s := newStream(response(typ, raw), core(nodeType()), new(wire.Strings))
		for range len(raw) + 1 {
			s.ready()
			e, err := s.next()
			if err != nil {
				return
			}
			if e.typ == failure && e.status == nil {
				t.Fatal("an error without a status")
			}
		}
		t.Fatal("more events than bytes")
	})
}

func FuzzPage(f *testing.F) {
	f.Add(encode(listOf("nodes", []runtime.Object{node("n1", "10.244.1.0/24")}, metav1.ListMeta{Continue: "x"}), "v1", "NodeList", true), true)
	f.Add([]byte(`{"metadata":{"resourceVersion":"1"},"items":[{"metadata":{"name":"n1"}}]}`), false)
	f.Fuzz(func(t *testing.T, raw []byte, proto bool) {
		typ := map[bool]string{true: protobuf, false: "application/json"}[proto]
		p, err := readPage(response(typ, raw), core(nodeType()), nil)
		for _, i := range p.items {
			if err == nil && len(i.objs) == 0 && i.err == nil {
				t.Fatal("neither an object nor an error")
			}
		}
	})
}
