package kube

import (
	"context"

	"weft/internal/convert/language"
)

type office struct{ s *Source }

func newOffice(s *Source) *office { return &office{s} }

func (o *office) run(ctx context.Context) { <-ctx.Done() }

func (o *office) holds() bool { return false }

func (s *Source) examine(language.Kind, []change) {}
