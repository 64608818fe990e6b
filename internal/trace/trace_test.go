package trace

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"
)

func TestParse(t *testing.T) {
	const id, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
	for s, ok := range map[string]bool{
		"00-" + id + "-" + span + "-01":                                       true,
		"00-" + id + "-" + span + "-00":                                       true,
		"cc-" + id + "-" + span + "-01-of the future":                         true,
		"00-" + id + "-" + span + "-01-more":                                  false,
		"ff-" + id + "-" + span + "-01":                                       false,
		"00-" + strings.ToUpper(id) + "-" + span + "-01":                      false,
		"00-" + strings.Repeat("0", 32) + "-" + span + "-01":                  false,
		"00-" + id + "-" + strings.Repeat("0", 16) + "-01":                    false,
		"00-" + id[1:] + "-" + span + "-01":                                   false,
		"00-" + id + "-" + span:                                               false,
		"00-" + id + "-" + span + "-1":                                        false,
		"":                                                                    false,
		"00-" + id + "-" + span + "-0g":                                       false,
		"0g-" + id + "-" + span + "-01":                                       false,
		strings.Repeat("00-"+id+"-"+span+"-01", 1000):                         false,
		"00-" + strings.Repeat("g", 32) + "-" + span + "-01":                  false,
		"00-" + id + "-" + span[:15] + "\n" + "-01":                           false,
		strings.Join([]string{"00", id, span, "01", "", "", "", "", ""}, "-"): false,
	} {
		l, got := Parse(s)
		if got != ok {
			t.Errorf("%q: %v, want %v", s, got, ok)
		}
		if ok && (l.Trace != id || l.Span != span || l.String() != "00-"+id+"-"+span+"-01") {
			t.Errorf("%q is read as %+v", s, l)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	for s, ok := range map[string]bool{
		"7c1d2e3f-aaaa-4bbb-8ccc-0123456789ab": true, "a": true, "A.b_C-9": true, strings.Repeat("x", 64): true, NewRequest(): true,
		"": false, strings.Repeat("x", 65): false, "a b": false, "a\n": false, "ä": false, `a"`: false, "a=b": false,
	} {
		if ValidRequest(s) != ok {
			t.Errorf("%q: want %v", s, ok)
		}
	}
}

// TestOff: without a recorder nothing is made, and the context stays as it was.
func TestOff(t *testing.T) {
	ctx := With(t.Context(), New())
	same, span := Begin(ctx, "x")
	span.Set("k", "v")
	span.End("")
	if same != ctx || span != nil {
		t.Error("a span was begun that nobody records")
	}
	if n := testing.AllocsPerRun(100, func() {
		_, span := Begin(ctx, "x")
		span.End("")
	}); n != 0 {
		t.Errorf("%v allocations for a span that nobody records", n)
	}
	var none Recorder
	if WithRecorder(ctx, none) != ctx {
		t.Error("no recorder was taken for one")
	}
	none.Record(Span{})
}

func TestSpans(t *testing.T) {
	var got []Span
	ctx := WithRecorder(t.Context(), func(s Span) { got = append(got, s) })
	outer, a := Begin(ctx, "outer", Attribute{"k", "v"})
	_, b := BeginKind(outer, Client, "inner")
	time.Sleep(time.Millisecond)
	b.End("NOT_SERVED")
	a.Set("l", "w")
	a.End("")
	if len(got) != 2 {
		t.Fatalf("%+v", got)
	}
	in, out := got[0], got[1]
	if out.Parent != "" || !ValidTrace(out.Trace) || !ValidSpan(out.Span) || out.Failure != "" || len(out.Attributes) != 2 || out.Name != "outer" {
		t.Errorf("outer %+v", out)
	}
	if in.Parent != out.Span || in.Trace != out.Trace || in.Kind != Client || in.Failure != "NOT_SERVED" || in.Begun.Before(out.Begun) || in.Ended.After(out.Ended) || !in.Ended.After(in.Begun) {
		t.Errorf("inner %+v", in)
	}
	Recorder(func(Span) { t.Error("a span without ids was recorded") }).Record(Span{Name: "x"})
}

// TestLog: every line names call and trace, also below attributes and groups.
func TestLog(t *testing.T) {
	var out bytes.Buffer
	log := slog.New(LogHandler(slog.NewTextHandler(&out, nil)))
	l := New()
	ctx := With(WithRequest(context.Background(), "req-1"), l)
	for _, one := range []*slog.Logger{log, log.With("a", 1)} {
		out.Reset()
		one.InfoContext(ctx, "hello")
		for _, want := range []string{"request_id=req-1", "trace_id=" + l.Trace} {
			if strings.Count(out.String(), want) != 1 {
				t.Errorf("%q lacks %s", out.String(), want)
			}
		}
	}
	out.Reset()
	log.InfoContext(t.Context(), "hello")
	if strings.Contains(out.String(), "_id") {
		t.Error(out.String())
	}
}
