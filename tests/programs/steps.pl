# Perl with hashes, closures, regular expressions and a child that it talks to through pipes.
use strict;
use warnings;
use POSIX ();
use Time::HiRes qw(sleep);

my $steps = shift // 40;

sub limit {
    my $path = $ENV{GUEST_LIMIT} // return 9e15;
    open(my $file, '<', $path) or return 9e15;
    my $text = <$file>;
    return int($text);
}

sub say_line { POSIX::write(1, "$_[0]\n", length($_[0]) + 1) }

pipe(my $child_in, my $to_child)   or die;
pipe(my $from_child, my $child_out) or die;
my $pid = fork() // die;
if ($pid == 0) {
    close $to_child;
    close $from_child;
    $child_out->autoflush(1);
    while (my $line = <$child_in>) {
        chomp $line;
        print {$child_out} scalar(reverse $line), "\n";
    }
    POSIX::_exit(7);
}
close $child_in;
close $child_out;
$to_child->autoflush(1);

my (%words, $sum);
for my $step (1 .. $steps) {
    sleep 0.005;
    sleep 0.005 while limit() < $step;
    say_line("step $step");
    for my $k (1 .. 200) {
        my $word = join '', map { chr(97 + ($step * $k * $_) % 26) } 1 .. 5;
        $words{$word}++;
        $sum += length($1) if $word =~ /([aeiou]+)/;
    }
    print {$to_child} "word $step\n";
    my $answer = <$from_child>;
    chomp $answer;
    die "wrong answer $answer" unless $answer eq reverse "word $step";
}
close $to_child;
waitpid($pid, 0);
die "status $?" unless $? == 7 << 8;
my $total = 0;
$total = ($total * 31 + $words{$_} * length) % 1000003 for sort keys %words;
say_line("ok steps " . scalar(keys %words) . " $sum $total");
