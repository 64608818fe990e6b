package command

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"
	eventv1 "github.com/sallyport-pki/sallyport/gen/sallyport/event/v1"
	"github.com/sallyport-pki/sallyport/internal/config"

	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/kind"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

func (a *app) auditCommand() *cobra.Command {
	return parent("audit", "Read and verify the audit log",
		`Every change and every denied call is one record in an append-only log with
signed checkpoints. "audit verify" needs no server: it takes a copy of the log, an
export or a proof, and the log's public key, which an auditor keeps for himself
(sallyport audit key).`,
		a.auditListCommand(), a.auditTailCommand(), a.auditExportCommand(), a.auditProveCommand(),
		a.auditCheckpointCommand(), a.auditKeyCommand(), a.auditVerifyCommand())
}

// recordFilter is the flags that choose records.
type recordFilter struct {
	since, until         moment
	kind, actor, subject string
	result, trace        string
}

func (f *recordFilter) flags(fs *pflag.FlagSet, now func() time.Time) {
	f.since.now, f.until.now = now, now
	fs.Var(&f.since, "since", "only at or after: a time such as 2026-11-21T10:00:00Z, or how long ago, such as 2h")
	fs.Var(&f.until, "until", "only before: as --since")
	fs.StringVar(&f.kind, "type", "", "only of this type, or a prefix ending in a dot such as issuer.request.")
	fs.StringVar(&f.actor, "actor", "", "only by this SPIFFE ID")
	fs.StringVar(&f.subject, "subject", "", "only on this, such as deployments/shop, or a prefix ending in a slash")
	fs.StringVar(&f.result, "result", "", "only with this result: succeeded, refused or failed")
	fs.StringVar(&f.trace, "trace", "", "only of this trace: the whole story of one call")
}

func (f *recordFilter) message() (*auditv1.RecordFilter, error) {
	m := &auditv1.RecordFilter{Type: f.kind, Actor: f.actor, Subject: f.subject, TraceId: f.trace}
	if !f.since.t.IsZero() {
		m.From = timestamppb.New(f.since.t)
	}
	if !f.until.t.IsZero() {
		m.To = timestamppb.New(f.until.t)
	}
	if f.result != "" {
		n, err := output.ParseWord(m.GetResult().Descriptor(), f.result)
		if err != nil {
			return nil, exit.Errorf(exit.Usage, "--result: %w", err)
		}
		m.Result = eventv1.Result(n)
	}
	return m, nil
}

// moment is a time given as such or as how long ago.
type moment struct {
	t   time.Time
	now func() time.Time
}

func (m *moment) Set(s string) error {
	if d, err := config.ParseDuration(s); err == nil {
		m.t = m.now().Add(-d.Std())
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, s, time.Local); err == nil {
			m.t = t
			return nil
		}
	}
	return fmt.Errorf("%q is no time: write 2026-11-21T10:00:00Z, 2026-11-21, or how long ago, such as 2h", s)
}

func (m *moment) Type() string { return "time" }

func (m *moment) String() string {
	if m.t.IsZero() {
		return ""
	}
	return m.t.Format(time.RFC3339)
}

// recordFormat is how records are shown.
type recordFormat string

func (f *recordFormat) Set(s string) error {
	if s != "table" && s != "json" {
		return fmt.Errorf("unknown format %q: want table or json", s)
	}
	*f = recordFormat(s)
	return nil
}

func (f *recordFormat) Type() string    { return "format" }
func (f *recordFormat) String() string  { return string(*f) }
func (f *recordFormat) Words() []string { return []string{"table", "json"} }

const recordFormatHelp = "table, or json: one object a line with position and record"

// writeRecord prints one record. The record itself is canonical JSON and is
// passed on byte for byte.
func writeRecord(w io.Writer, format recordFormat, r *auditv1.Record) error {
	if format == "json" {
		_, err := fmt.Fprintf(w, "{\"position\":%d,\"record\":%s}\n", r.GetPosition(), bytes.TrimSpace(r.GetJson()))
		return err
	}
	_, err := fmt.Fprintln(w, strings.Join(recordCells(r), "  "))
	return err
}

var recordColumns = []string{"POSITION", "TIME", "TYPE", "SUBJECT", "ACTOR", "RESULT", "REASON"}

func recordCells(r *auditv1.Record) []string {
	rec, err := auditlog.ParseRecord(r.GetJson())
	if err != nil {
		return []string{fmt.Sprint(r.GetPosition()), output.Clean("not a record: " + err.Error())}
	}
	cells := []string{
		fmt.Sprint(r.GetPosition()), rec.Time.UTC().Format("2006-01-02T15:04:05Z"), rec.Type, cmp.Or(rec.Subject, "-"),
		cmp.Or(kind.Actor(rec.Actor), "-"), cmp.Or(rec.Result, "-"), rec.Reason,
	}
	for i := range cells {
		cells[i] = output.Clean(cells[i])
	}
	return cells
}

func (a *app) auditListCommand() *cobra.Command {
	var (
		filter recordFilter
		format = recordFormat("table")
		limit  int
		bare   bool
	)
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls", "search"}, Short: "Search records, newest first", Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			records, err := a.records(cmd.Context(), &filter, limit)
			if err != nil {
				return err
			}
			if format == "json" {
				for _, r := range records {
					if err := writeRecord(a.env.Out, format, r); err != nil {
						return err
					}
				}
				return nil
			}
			t := &output.Table{Columns: recordColumns, NoHeaders: bare}
			for _, r := range records {
				t.Add(recordCells(r)...)
			}
			if t.Len() == 0 {
				fmt.Fprintln(a.env.Err, "No records found.")
			}
			return t.Write(a.env.Out)
		},
	}
	filter.flags(cmd.Flags(), a.now)
	cmd.Flags().VarP(&format, "output", "o", recordFormatHelp)
	cmd.Flags().IntVar(&limit, "limit", 50, "show at most this many; 0 means all")
	cmd.Flags().BoolVar(&bare, "no-headers", false, "leave the line with the column names out")
	completeWords(cmd)
	return cmd
}

// records fetches the newest records, page by page; limit 0 means all.
func (a *app) records(ctx context.Context, filter *recordFilter, limit int) ([]*auditv1.Record, error) {
	f, err := filter.message()
	if err != nil {
		return nil, err
	}
	c, err := a.connect()
	if err != nil {
		return nil, err
	}
	var all []*auditv1.Record
	q := &auditv1.ListRecordsRequest{Filter: f}
	for {
		q.PageSize = 500
		if limit > 0 {
			q.PageSize = int32(min(500, limit-len(all))) //nolint:gosec // at most 500
		}
		r, err := c.Audit().ListRecords(ctx, q)
		if err != nil {
			return nil, err
		}
		all = append(all, r.GetRecords()...)
		if q.PageToken = r.GetNextPageToken(); q.PageToken == "" || limit > 0 && len(all) >= limit {
			return all, nil
		}
	}
}

func (a *app) auditTailCommand() *cobra.Command {
	var (
		filter recordFilter
		format = recordFormat("table")
		follow bool
		lines  int
		from   int64
	)
	cmd := &cobra.Command{
		Use: "tail", Short: "Show the newest records, and with -f those to come",
		Long: `Show the newest records, oldest of them first, and with -f go on with those to
come. --from begins at a position instead. When it ends, a follower says on
standard error from which position to go on; a server that goes away is waited for.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			t := &tail{app: a, filter: &filter, format: format}
			return t.run(cmd.Context(), from, lines, follow)
		},
	}
	filter.flags(cmd.Flags(), a.now)
	cmd.Flags().VarP(&format, "output", "o", recordFormatHelp)
	cmd.Flags().BoolVarP(&follow, "follow", "f", false, "go on with new records")
	cmd.Flags().IntVarP(&lines, "lines", "n", 10, "begin with this many")
	cmd.Flags().Int64Var(&from, "from", -1, "begin at this position")
	completeWords(cmd)
	return cmd
}

type tail struct {
	app    *app
	filter *recordFilter
	format recordFormat
	next   uint64 // first position not shown yet
}

func (t *tail) run(ctx context.Context, from int64, lines int, follow bool) error {
	c, err := t.app.connect()
	if err != nil {
		return err
	}
	head, _, err := checkpoint(ctx, c)
	if err != nil {
		return err
	}
	t.next = head.Size
	switch {
	case from >= 0:
		t.next = uint64(from)
	case lines > 0:
		records, err := t.app.records(ctx, t.filter, lines)
		if err != nil {
			return err
		}
		slices.Reverse(records)
		for _, r := range records {
			if err := writeRecord(t.app.env.Out, t.format, r); err != nil {
				return err
			}
			t.next = max(t.next, r.GetPosition()+1)
		}
	}
	if !follow {
		if from < 0 || t.next >= head.Size {
			return nil
		}
		return t.stream(ctx, c, head.Size)
	}
	defer func() { fmt.Fprintf(t.app.env.Err, "Go on with: sallyport audit tail -f --from %d\n", t.next) }()
	for {
		err := t.stream(ctx, c, 0)
		if ctx.Err() != nil {
			return nil // a follower ends by being interrupted
		}
		if err != nil && !comesBack(err) {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchPause):
		}
	}
}

// stream shows records from t.next on, until end; 0 means for ever.
func (t *tail) stream(ctx context.Context, c *connect.Client, end uint64) error {
	f, err := t.filter.message()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s, err := c.Audit().TailRecords(ctx, &auditv1.TailRecordsRequest{Position: t.next, Filter: f})
	if err != nil {
		return err
	}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		for _, rec := range r.GetRecords() {
			if end > 0 && rec.GetPosition() >= end {
				return nil
			}
			if err := writeRecord(t.app.env.Out, t.format, rec); err != nil {
				return err
			}
			t.next = rec.GetPosition() + 1
		}
		t.next = max(t.next, r.GetNextPosition())
		if end > 0 && t.next >= end {
			return nil
		}
	}
}

// checkpoint fetches the newest signed tree head and the log's key, and checks
// one by the other.
func checkpoint(ctx context.Context, c *connect.Client) (auditlog.Checkpoint, string, error) {
	r, err := c.Audit().GetCheckpoint(ctx, &auditv1.GetCheckpointRequest{})
	if err != nil {
		return auditlog.Checkpoint{}, "", err
	}
	head, err := parseCheckpoint([]byte(r.GetCheckpoint()), r.GetVerifier())
	return head, strings.TrimSpace(r.GetVerifier()), err
}

func parseCheckpoint(signed []byte, key string) (auditlog.Checkpoint, error) {
	k, err := auditlog.ParseKey(key)
	if err != nil {
		return auditlog.Checkpoint{}, err
	}
	head, err := auditlog.ParseCheckpoint(signed, k)
	return head, violated(err)
}

// violated gives what a check found the exit code for it.
func violated(err error) error {
	var v *auditlog.Violation
	if errors.As(err, &v) {
		return exit.With(exit.Verification, err)
	}
	return err
}
