package command

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/sallyport-pki/sallyport/auditlog"
	auditv1 "github.com/sallyport-pki/sallyport/gen/sallyport/audit/v1"

	"github.com/sallyport-pki/sallyport/cli/internal/atomicfile"
	"github.com/sallyport-pki/sallyport/cli/internal/connect"
	"github.com/sallyport-pki/sallyport/cli/internal/exit"
	"github.com/sallyport-pki/sallyport/cli/internal/output"
)

// extentSuffix is added to an export's name for the file that belongs to it.
const extentSuffix = ".checkpoint"

func (a *app) auditKeyCommand() *cobra.Command {
	return &cobra.Command{
		Use: "key", Short: "Show the log's public key, for an auditor to keep",
		Long: `Show the log's public key as a note verifier. An auditor takes it once, by a way
he trusts, and keeps it: whoever verifies with a key that came along with the log
has verified nothing.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			_, key, err := checkpoint(cmd.Context(), c)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintln(a.env.Out, key)
			return err
		},
	}
}

func (a *app) auditCheckpointCommand() *cobra.Command {
	var older, proof, out string
	cmd := &cobra.Command{
		Use: "checkpoint", Short: "Show the newest signed checkpoint; with --older prove that it continues that one",
		Long: `Show the newest signed checkpoint. An auditor who keeps one gives it as --older at
the next visit: the server must then prove that the log was only added to since
(exit code 8 if it cannot). --proof keeps that proof as a file for "audit verify".`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.connect()
			if err != nil {
				return err
			}
			head, key, err := checkpoint(cmd.Context(), c)
			if err != nil {
				return err
			}
			if older != "" {
				if head, err = a.continues(cmd.Context(), c, head, older, proof, key); err != nil {
					return err
				}
			} else if proof != "" {
				return exit.Errorf(exit.Usage, "--proof needs --older")
			}
			return a.writeOut(out, head.Note)
		},
	}
	cmd.Flags().StringVar(&older, "older", "", "file with a checkpoint kept from before")
	cmd.Flags().StringVar(&proof, "proof", "", "write the proof of continuation to this file")
	cmd.Flags().StringVarP(&out, "output", "o", "", "write the checkpoint to this file instead of standard output")
	return cmd
}

// continues fetches and checks the proof that the log, whose newest checkpoint is head, continues the checkpoint in file.
func (a *app) continues(ctx context.Context, c *connect.Client, head auditlog.Checkpoint, file, proofFile, key string) (auditlog.Checkpoint, error) {
	signed, err := os.ReadFile(file)
	if err != nil {
		return auditlog.Checkpoint{}, exit.With(exit.Usage, fmt.Errorf("reading the older checkpoint: %w", err))
	}
	old, err := parseCheckpoint(signed, key)
	if err != nil {
		return auditlog.Checkpoint{}, fmt.Errorf("%s: %w", file, err)
	}
	if head.Size < old.Size {
		return auditlog.Checkpoint{}, exit.Errorf(exit.Verification, "the log had %d records when %s was signed and has %d now: it was set back, or records were removed; keep both as evidence", old.Size, file, head.Size)
	}
	r, err := c.Audit().GetConsistencyProof(ctx, &auditv1.GetConsistencyProofRequest{FromSize: old.Size})
	if err != nil {
		return auditlog.Checkpoint{}, err
	}
	p := auditlog.Consistency{Older: signed, Newer: []byte(r.GetCheckpoint()), Path: r.GetPath()}
	_, newer, err := auditlog.VerifyConsistency(p, auditlog.Options{Key: key})
	if err != nil {
		return newer, violated(err)
	}
	if proofFile != "" {
		b, err := p.Encode()
		if err != nil {
			return newer, err
		}
		if err := writeFile(proofFile, b); err != nil {
			return newer, err
		}
	}
	fmt.Fprintf(a.env.Err, "The log of %d records continues the checkpoint of %d.\n", newer.Size, old.Size)
	return newer, nil
}

func (a *app) auditProveCommand() *cobra.Command {
	var out, key string
	cmd := &cobra.Command{
		Use: "prove POSITION", Short: "Prove that one record is in the log",
		Long: `Fetch one record with the proof that it stands at its position in the tree of a
signed checkpoint, check it, and write it as a file that "audit verify" takes
without any server. Exit code 8 if the proof is wrong.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			position, err := strconv.ParseUint(args[0], 10, 63)
			if err != nil {
				return exit.Errorf(exit.Usage, "%q is no position: want a whole number from 0", args[0])
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			trusted, err := givenKey(key)
			if err != nil {
				return err
			}
			if trusted == "" {
				if _, trusted, err = checkpoint(cmd.Context(), c); err != nil {
					return err
				}
			}
			p, err := inclusion(cmd.Context(), c, position)
			if err != nil {
				return err
			}
			rec, head, err := auditlog.VerifyInclusion(p, auditlog.Options{Key: trusted})
			if err != nil {
				return violated(err)
			}
			b, err := p.Encode()
			if err != nil {
				return err
			}
			fmt.Fprintf(a.env.Err, "Record %d (%s on %s) is in the log of %d records.\n", position, output.Clean(rec.Type), output.Clean(rec.Subject), head.Size)
			return a.writeOut(out, b)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "write the proof to this file instead of standard output")
	cmd.Flags().StringVar(&key, "key", "", keyHelp+"; without it the server's own")
	return cmd
}

func inclusion(ctx context.Context, c *connect.Client, position uint64) (auditlog.Inclusion, error) {
	r, err := c.Audit().GetRecord(ctx, &auditv1.GetRecordRequest{Position: position})
	if err != nil {
		return auditlog.Inclusion{}, err
	}
	return auditlog.Inclusion{
		Position: r.GetRecord().GetPosition(), Record: r.GetRecord().GetJson(), Path: r.GetPath(), Checkpoint: []byte(r.GetCheckpoint()),
	}, nil
}

const keyHelp = "the log's public key, or a file that holds it"

// givenKey reads --key, which is a key or the name of a file with one.
func givenKey(text string) (string, error) {
	if text == "" {
		return "", nil
	}
	if _, err := auditlog.ParseKey(text); err == nil {
		return text, nil
	}
	b, err := os.ReadFile(text)
	if err != nil {
		return "", exit.Errorf(exit.Usage, "--key: neither a key nor a file that can be read: %w", err)
	}
	if _, err := auditlog.ParseKey(string(b)); err != nil {
		return "", exit.Errorf(exit.Usage, "--key: %s: %w", text, err)
	}
	return strings.TrimSpace(string(b)), nil
}

func (a *app) auditExportCommand() *cobra.Command {
	var (
		out      string
		from, to uint64
	)
	cmd := &cobra.Command{
		Use: "export -o FILE", Short: "Write records as JSON lines, with what verifies them",
		Long: `Write the records as JSON lines to FILE, in the order of the log and byte for byte
as they were hashed, and beside it FILE` + extentSuffix + `: the signed checkpoint that covers
them, which "audit verify FILE" needs. With -o - the lines go to standard output alone.`,
		Args: usage(cobra.NoArgs),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if out == "" {
				return exit.Errorf(exit.Usage, "export where to? Give -o FILE, or -o - for standard output")
			}
			if to != 0 && to <= from {
				return exit.Errorf(exit.Usage, "--to %d: want a position after --from %d", to, from)
			}
			c, err := a.connect()
			if err != nil {
				return err
			}
			return a.export(cmd.Context(), c, out, from, to)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "file to write, - for standard output")
	cmd.Flags().Uint64Var(&from, "from", 0, "first position")
	cmd.Flags().Uint64Var(&to, "to", 0, "end before this position; 0 means the end of the log")
	return cmd
}

func (a *app) export(ctx context.Context, c *connect.Client, out string, from, to uint64) error {
	if out == "-" {
		_, _, err := a.exportLines(ctx, c, a.env.Out, from, to)
		return err
	}
	f, err := atomicfile.Create(out, 0o640)
	if err != nil {
		return full(fmt.Errorf("writing %s: %w", out, err))
	}
	defer func() { _ = f.Cleanup() }() // nothing to do after a success
	n, signed, err := a.exportLines(ctx, c, f, from, to)
	if err != nil {
		return full(err)
	}
	extent, err := extentOf(ctx, c, signed, from, n, to != 0)
	if err != nil {
		return err
	}
	b, err := extent.Encode()
	if err != nil {
		return err
	}
	if err := atomicfile.Commit(f, out); err != nil {
		return full(fmt.Errorf("writing %s: %w", out, err))
	}
	if err := writeFile(out+extentSuffix, b); err != nil {
		return err
	}
	_, err = fmt.Fprintf(a.env.Err, "Exported %d records to %s. Check them by: sallyport audit verify --key KEY %s\n", n, out, out)
	return err
}

// exportLines writes the lines and gives their number and the checkpoint.
func (a *app) exportLines(ctx context.Context, c *connect.Client, w io.Writer, from, to uint64) (uint64, []byte, error) {
	s, err := c.Audit().ExportRecords(ctx, &auditv1.ExportRecordsRequest{Position: from, End: to})
	if err != nil {
		return 0, nil, err
	}
	show := a.meter("exported")
	defer show.end()
	var n uint64
	var signed []byte
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return n, nil, err
		}
		var b bytes.Buffer
		for _, rec := range r.GetRecords() {
			if rec.GetPosition() != from+n {
				return n, nil, fmt.Errorf("exporting: the server sent position %d where %d was next", rec.GetPosition(), from+n)
			}
			b.Write(rec.GetJson())
			b.WriteByte('\n')
			n++
		}
		if _, err := w.Write(b.Bytes()); err != nil {
			return n, nil, fmt.Errorf("writing the export: %w", err)
		}
		if r.GetCheckpoint() != "" {
			signed = []byte(r.GetCheckpoint())
		}
		show.at(n)
	}
	if signed == nil {
		return n, nil, errors.New("exporting: the server ended without a checkpoint: try again")
	}
	return n, signed, nil
}

// extentOf makes the file that belongs to an export of n records. For a part
// of the log it fetches the hashes that join the part to a signed root.
func extentOf(ctx context.Context, c *connect.Client, signed []byte, from, n uint64, cut bool) (auditlog.Extent, error) {
	if from == 0 && !cut {
		return auditlog.Extent{Checkpoint: signed}, nil
	}
	if n == 0 {
		return auditlog.Extent{}, exit.Errorf(exit.NotFound, "there are no records from position %d on", from)
	}
	last, err := inclusion(ctx, c, from+n-1)
	if err != nil {
		return auditlog.Extent{}, err
	}
	_, key, err := checkpoint(ctx, c)
	if err != nil {
		return auditlog.Extent{}, err
	}
	head, err := parseCheckpoint(last.Checkpoint, key)
	if err != nil {
		return auditlog.Extent{}, err
	}
	e := auditlog.Extent{Checkpoint: last.Checkpoint, Start: from, End: from + n}
	if e.End != head.Size {
		e.Last = last.Path
	}
	if from == 0 {
		return e, nil
	}
	first, err := inclusion(ctx, c, from)
	if err != nil {
		return auditlog.Extent{}, err
	}
	firstHead, err := parseCheckpoint(first.Checkpoint, key)
	if err != nil {
		return auditlog.Extent{}, err
	}
	e.Before, err = auditlog.Before(from, firstHead.Size, first.Path)
	return e, err
}

// full gives an error of a full disk its code and its advice.
func full(err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return exit.Errorf(exit.Space, "%w: free space there and try again; nothing was replaced", err)
	}
	return err
}

func writeFile(path string, b []byte) error {
	if err := atomicfile.Write(path, b, 0o640); err != nil {
		return full(fmt.Errorf("writing %s: %w", path, err))
	}
	return nil
}

func (a *app) writeOut(path string, b []byte) error {
	if path == "" || path == "-" {
		_, err := a.env.Out.Write(b)
		return err
	}
	return writeFile(path, b)
}

// meter shows progress on standard error when that is a terminal.
type meter struct {
	w    io.Writer // nil: nobody looks
	verb string
	last time.Time
	now  func() time.Time
}

func (a *app) meter(verb string) *meter {
	m := &meter{verb: verb, now: a.now}
	if output.Terminal(a.env.Err) {
		m.w = a.env.Err
	}
	return m
}

func (m *meter) at(n uint64) {
	if m.w == nil || m.now().Sub(m.last) < 200*time.Millisecond {
		return
	}
	m.last = m.now()
	fmt.Fprintf(m.w, "\r%d records %s", n, m.verb)
}

func (m *meter) end() {
	if m.w != nil && !m.last.IsZero() {
		fmt.Fprint(m.w, "\r\x1b[K")
	}
}

// stage shows what is being done on standard error when that is a terminal.
type stage struct{ meter *meter }

func (a *app) stage() *stage { return &stage{a.meter("")} }

func (s *stage) tell(what string) {
	if s.meter.w == nil || s.meter.now().Sub(s.meter.last) < 200*time.Millisecond {
		return
	}
	s.meter.last = s.meter.now()
	fmt.Fprintf(s.meter.w, "\r\x1b[K%s", what)
}

func (s *stage) end() { s.meter.end() }

func (a *app) auditVerifyCommand() *cobra.Command {
	var key, older, extent string
	cmd := &cobra.Command{
		Use: "verify --key KEY DIR|EXPORT|PROOF", Short: "Verify a copy of the log, an export or a proof, offline",
		Long: `Verify that what you were given is what the log's key has signed. No server, no
network, no configuration is used. What it takes:

  a directory   the log itself or a copy of it (DIR/audit of "sallyport serve")
  an export     JSON lines of "audit export", with the file EXPORT` + extentSuffix + ` beside it
  a proof       a file of "audit prove" or "audit checkpoint --proof"

--key is the log's public key from your own records. --older is a checkpoint kept
from an earlier visit, which the log must continue: without it a log rewritten by
its own operator cannot be told from the true one.

Exit code 0: all is right. 8: something is wrong, and the line says what and where.
Any other code: the check could not be done.`,
		Args: usage(cobra.ExactArgs(1)),
		RunE: func(cmd *cobra.Command, args []string) error {
			o := auditlog.Options{}
			var err error
			if o.Key, err = givenKey(key); err != nil {
				return err
			}
			if o.Key == "" {
				return exit.Errorf(exit.Usage, "verify by which key? Give --key, the log's public key or a file that holds it (\"sallyport audit key\" shows it once)")
			}
			if older != "" {
				if o.Older, err = os.ReadFile(older); err != nil {
					return exit.With(exit.Usage, fmt.Errorf("reading the older checkpoint: %w", err))
				}
			}
			return a.verify(cmd.Context(), args[0], extent, o)
		},
		ValidArgsFunction: func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
			return nil, cobra.ShellCompDirectiveDefault
		},
	}
	cmd.Flags().StringVar(&key, "key", "", keyHelp)
	cmd.Flags().StringVar(&older, "older", "", "file with a checkpoint kept from before")
	cmd.Flags().StringVar(&extent, "checkpoint", "", "file that belongs to an export; without it EXPORT"+extentSuffix)
	return cmd
}

func (a *app) verify(ctx context.Context, path, extent string, o auditlog.Options) error {
	fi, err := os.Stat(path)
	if err != nil {
		return exit.With(exit.Usage, err)
	}
	show := a.meter("verified")
	o.Progress = func(done, _ uint64) { show.at(done) }
	var report auditlog.Report
	switch {
	case fi.IsDir():
		report, err = auditlog.VerifyDir(ctx, logDir(path), o)
	default:
		var proof bool
		if proof, err = a.verifyProof(path, o); proof {
			return violated(err)
		}
		if err == nil {
			report, err = verifyExport(ctx, path, extent, o)
		}
	}
	show.end()
	if err != nil {
		return violated(err)
	}
	return a.tellReport(report)
}

// logDir is the log itself when path is the directory that the audit service
// keeps it in, beside its key.
func logDir(path string) string {
	below := filepath.Join(path, "log")
	if _, err := os.Stat(filepath.Join(below, "checkpoint")); err == nil {
		return below
	}
	return path
}

func (a *app) tellReport(r auditlog.Report) error {
	fmt.Fprintf(a.env.Out, "Verified: %d records, positions %d to %d, signed by %s.\n", r.Records, r.Start, max(r.Start+r.Records, 1)-1, output.Clean(r.Checkpoint.Origin))
	if !r.Earliest.IsZero() {
		fmt.Fprintf(a.env.Out, "They are from %s to %s.\n", r.Earliest.UTC().Format(time.RFC3339), r.Latest.UTC().Format(time.RFC3339))
	}
	if r.Older == nil {
		_, err := fmt.Fprintln(a.env.Out, "No older checkpoint was given: keep this one (sallyport audit checkpoint) for the next visit.")
		return err
	}
	_, err := fmt.Fprintf(a.env.Out, "They continue the older checkpoint of %d records.\n", r.Older.Size)
	return err
}

// verifyProof checks a proof file; proof is false when it is none.
func (a *app) verifyProof(path string, o auditlog.Options) (proof bool, err error) {
	const maxProof = 2 << 20
	f, err := os.Open(path)
	if err != nil {
		return false, exit.With(exit.Usage, err)
	}
	defer f.Close()
	head := make([]byte, 4096)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return false, fmt.Errorf("reading %s: %w", path, err)
	}
	// A record is one line that begins with its actor, a proof an indented object that begins with its format.
	if !bytes.HasPrefix(bytes.TrimSpace(bytes.TrimPrefix(bytes.TrimSpace(head[:n]), []byte("{"))), []byte(`"format"`)) {
		return false, nil
	}
	rest, err := io.ReadAll(io.LimitReader(f, maxProof))
	if err != nil {
		return true, fmt.Errorf("reading %s: %w", path, err)
	}
	file := append(head[:n:n], rest...)
	if p, err := auditlog.ParseInclusion(file); err == nil {
		rec, c, err := auditlog.VerifyInclusion(p, o)
		if err == nil {
			fmt.Fprintf(a.env.Out, "Verified: record %d (%s on %s, %s) is in the log of %d records, signed by %s.\n", p.Position,
				output.Clean(rec.Type), output.Clean(rec.Subject), rec.Time.UTC().Format(time.RFC3339), c.Size, output.Clean(c.Origin))
		}
		return true, err
	}
	p, err := auditlog.ParseConsistency(file)
	if err != nil {
		return true, err
	}
	old, newer, err := auditlog.VerifyConsistency(p, o)
	if err == nil {
		fmt.Fprintf(a.env.Out, "Verified: the log of %d records continues the checkpoint of %d, both signed by %s.\n", newer.Size, old.Size, output.Clean(newer.Origin))
	}
	return true, err
}

func verifyExport(ctx context.Context, path, extentPath string, o auditlog.Options) (auditlog.Report, error) {
	if extentPath == "" {
		extentPath = path + extentSuffix
	}
	b, err := os.ReadFile(extentPath)
	if errors.Is(err, fs.ErrNotExist) {
		return auditlog.Report{}, exit.Errorf(exit.Usage, "%s is not there: an export is verified against its checkpoint, name it by --checkpoint", extentPath)
	}
	if err != nil {
		return auditlog.Report{}, exit.With(exit.Usage, err)
	}
	e, err := auditlog.ParseExtent(b)
	if err != nil {
		return auditlog.Report{}, err
	}
	f, err := os.Open(path)
	if err != nil {
		return auditlog.Report{}, exit.With(exit.Usage, err)
	}
	defer f.Close()
	return auditlog.VerifyExport(ctx, f, e, o)
}
