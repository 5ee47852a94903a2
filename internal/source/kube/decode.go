package kube

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"

	"weft/internal/convert/k8s"
	"weft/internal/convert/language"
	"weft/internal/convert/wire"
	"weft/internal/model"
)

// The API server's protobuf (k8s.io/apimachinery/pkg/runtime/serializer/protobuf): an object is the magic below and a
// runtime.Unknown with its type and its bytes; a watch is a sequence of metav1.WatchEvent, each after
// its length as 4 bytes big-endian, with the object in its envelope inside.

// magic begins every protobuf object.
const magic = "k8s\x00"

// envelope opens a runtime.Unknown.
func envelope(b []byte) (t k8s.Type, raw []byte, err error) {
	rest, ok := bytes.CutPrefix(b, []byte(magic))
	if !ok {
		return t, nil, fmt.Errorf("%w: not an object of the API server", wire.ErrMalformed)
	}
	err = wire.Walk(rest, nil, func(f wire.Field) error {
		switch f.Num {
		case 1:
			return f.Message(func(f wire.Field) error {
				switch f.Num {
				case 1:
					t.APIVersion = f.Text()
				case 2:
					t.Kind = f.Text()
				}
				return nil
			})
		case 2:
			raw = f.Bytes()
		}
		return nil
	})
	return t, raw, err
}

// item is what came of one object of the API server.
type item struct {
	id      string // "namespace/name", or "name" of a cluster-scoped kind
	name    string // "Pod default/web", for messages
	version string // resource version
	end     bool   // it is the mark of the end of the initial events
	objs    []model.Object
	err     error           // names the object; with objs, what of the object is left out
	ref     model.Ref       // of policies
	raw     json.RawMessage // of policies that came as JSON; else nil
}

// refused reports whether nothing of the object can be used.
func (i item) refused() bool { return i.err != nil && len(i.objs) == 0 }

// decoder reads one object; proto says in which encoding. Strings may be nil.
type decoder func(raw []byte, proto bool, s *wire.Strings) item

// core decodes one of Kubernetes' own kinds.
func core(of k8s.Type) decoder {
	return func(raw []byte, proto bool, s *wire.Strings) item {
		var i k8s.Item
		if proto {
			i = k8s.FromProto(of, raw, s)
		} else {
			i = k8s.FromJSON(raw, of)
		}
		out := headOf(i.Meta)
		out.name, out.err = i.Name(), i.Err
		if i.Object != nil {
			out.id, out.objs = i.Object.Key().Name, []model.Object{i.Object}
		}
		return out
	}
}

// headOf is the item of an object of which only the metadata is known.
func headOf(m k8s.Meta) item {
	return item{
		id:      strings.TrimPrefix(m.Namespace+"/"+m.Name, "/"),
		version: m.ResourceVersion,
		end:     m.Annotations[k8s.AnnInitialEnd] == "true",
	}
}

// metaOf reads the metadata of an object of any kind: it is field 1 of every one.
func metaOf(raw []byte, proto bool, s *wire.Strings) (k8s.Meta, error) {
	if proto {
		return k8s.FromProto(k8s.Type{APIVersion: "v1", Kind: "Namespace"}, raw, s).Meta, nil
	}
	var o struct {
		Meta k8s.Meta `json:"metadata"`
	}
	err := json.Unmarshal(raw, &o)
	return o.Meta, err
}

// metadata decodes objects of which nothing but the name counts.
func metadata(kind string) decoder {
	return func(raw []byte, proto bool, s *wire.Strings) item {
		m, err := metaOf(raw, proto, s)
		i := headOf(m)
		i.name, i.err = kind+" "+i.id, err
		return i
	}
}

// policy decodes a kind of policies.
func policy(k language.Kind) decoder {
	return func(raw []byte, proto bool, s *wire.Strings) item {
		m, err := metaOf(raw, proto, s)
		i := headOf(m)
		if i.end || m.Name == "" && err == nil {
			return i // a bookmark
		}
		var r language.Result
		if proto {
			r = k.FromProto(m.Name, m.Namespace, raw, s)
		} else {
			r = k.Convert(raw)
			i.raw = raw
		}
		i.name, i.ref, i.objs, i.err = r.Ref.String(), r.Ref, r.Objects, r.Err
		return i
	}
}

// page is one answer to a list request.
type page struct {
	items           []item
	resourceVersion string
	next            string // "" on the last page
}

// readPage reads a response with a list of objects.
func readPage(r *http.Response, decode decoder, s *wire.Strings) (page, error) {
	body, err := readBody(r)
	if err != nil {
		return page{}, err
	}
	var p page
	if !isProto(r) {
		var list struct {
			Metadata struct{ ResourceVersion, Continue string }
			Items    []json.RawMessage
		}
		if err := json.Unmarshal(body, &list); err != nil {
			return p, err
		}
		p.resourceVersion, p.next = list.Metadata.ResourceVersion, list.Metadata.Continue
		for _, raw := range list.Items {
			p.items = append(p.items, decode(raw, false, s))
		}
		return p, nil
	}
	_, raw, err := envelope(body)
	if err != nil {
		return p, err
	}
	err = wire.Walk(raw, s, func(f wire.Field) error {
		switch f.Num {
		case 1:
			return f.Message(func(f wire.Field) error {
				switch f.Num {
				case 2:
					p.resourceVersion = f.Text()
				case 3:
					p.next = f.Text()
				}
				return nil
			})
		case 2:
			p.items = append(p.items, decode(f.Bytes(), true, s))
		}
		return nil
	})
	return p, err
}

// The types of watch events.
const (
	added    = "ADDED"
	modified = "MODIFIED"
	deleted  = "DELETED"
	bookmark = "BOOKMARK"
	failure  = "ERROR"
)

// event is one event of a watch.
type event struct {
	typ    string
	item   item // of a bookmark, only version and end have a meaning
	status *apiError
}

// stream reads the events of a watch.
type stream struct {
	r      *bufio.Reader
	decode decoder
	proto  bool
	strs   *wire.Strings
	buf    []byte // of the last frame
}

func newStream(r *http.Response, decode decoder, s *wire.Strings) *stream {
	return &stream{r: bufio.NewReaderSize(r.Body, 16<<10), decode: decode, proto: isProto(r), strs: s}
}

// ready reports whether a whole event has been received already.
func (s *stream) ready() bool {
	b, _ := s.r.Peek(s.r.Buffered())
	if !s.proto {
		return bytes.IndexByte(b, '\n') >= 0
	}
	return len(b) >= 4 && uint64(len(b)-4) >= uint64(binary.BigEndian.Uint32(b))
}

// next returns the next event, waiting for it; io.EOF where the server ended the watch.
func (s *stream) next() (event, error) {
	if s.proto {
		return s.nextProto()
	}
	for {
		line, err := s.r.ReadBytes('\n')
		if len(bytes.TrimSpace(line)) == 0 {
			if err != nil {
				return event{}, err
			}
			continue
		}
		if err != nil {
			return event{}, truncated(err)
		}
		var w struct {
			Type   string          `json:"type"`
			Object json.RawMessage `json:"object"`
		}
		if err := json.Unmarshal(line, &w); err != nil {
			return event{}, fmt.Errorf("watch event: %w", err)
		}
		if w.Type == failure {
			return event{typ: w.Type, status: statusOf(w.Object, false)}, nil
		}
		return event{typ: w.Type, item: s.decode(w.Object, false, s.strs)}, nil
	}
}

func (s *stream) nextProto() (event, error) {
	var head [4]byte
	if _, err := io.ReadFull(s.r, head[:]); err != nil {
		return event{}, err // io.EOF at the border of two frames, else io.ErrUnexpectedEOF
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxBody {
		return event{}, fmt.Errorf("watch event of %d bytes", n)
	}
	if uint32(cap(s.buf)) < n || cap(s.buf) > 1<<20 {
		s.buf = make([]byte, n)
	}
	s.buf = s.buf[:n]
	if _, err := io.ReadFull(s.r, s.buf); err != nil {
		return event{}, truncated(err)
	}
	var e event
	var object []byte
	err := wire.Walk(s.buf, nil, func(f wire.Field) error {
		switch f.Num {
		case 1:
			e.typ = f.Text()
		case 2:
			return f.Message(func(f wire.Field) error {
				if f.Num == 1 {
					object = f.Bytes()
				}
				return nil
			})
		}
		return nil
	})
	if err != nil {
		return e, fmt.Errorf("watch event: %w", err)
	}
	if e.typ == failure {
		e.status = statusOf(object, true)
		return e, nil
	}
	_, raw, err := envelope(object)
	if err != nil {
		return e, fmt.Errorf("watch event: %w", err)
	}
	e.item = s.decode(raw, true, s.strs)
	return e, nil
}

// truncated words the end of a connection in the middle of an event.
func truncated(err error) error {
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // as documented by io
		return fmt.Errorf("watch: the connection ended within an event: %w", io.ErrUnexpectedEOF)
	}
	return err
}
