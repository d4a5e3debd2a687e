# perl starts.pl RUNS COMMAND…: runs the commands in turn, once more than RUNS, and prints median and 99th percentile of
# each in milliseconds, without the first round, and the first command's median against it.
use strict; use warnings; use Time::HiRes 'time';
my ($runs, @commands) = @ARGV;
my %times;
for my $run (0 .. $runs) {
    for my $command (@commands) {
        my $begin = time;
        system($command) == 0 or die "$command failed\n";
        push @{$times{$command}}, (time - $begin) * 1000 if $run > 0;
    }
}
my $first;
for my $command (@commands) {
    my @sorted = sort { $a <=> $b } @{$times{$command}};
    my ($median, $late) = @sorted[$#sorted * 0.5, $#sorted * 0.99];
    $first //= $median;
    my ($name) = $command =~ m{([^/]*)$};
    printf "  %-12s median %7.2f  p99 %7.2f   first/this %.2f\n", $name, $median, $late, $first / $median;
}
