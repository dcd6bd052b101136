"""Lower precision than the engines' own: what has to be measured or written beforehand."""
