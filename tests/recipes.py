"The small recipe of whole runs: a simulated market, two folds, every kind of rule"

SMALL = """
name: small
data: {settings: {universe: simulated, n_symbols: 20, n_sessions: 200}}
features: [core14]
label: {forward_return: {k: 5, excess: true}}
split: {walk_forward: {train: 100, test: 21, embargo: 5}}
model: {xgboost: {n_estimators: 10, max_depth: 2}}
rules: [{top_bottom: {k: 4, long: 0.5, short: -0.5}}, {ewma: {alpha: 0.15}}, volatility_target, {cap: {name: 0.2}}, {gross: {cap: 1.0}}]
daily: {paper_sessions: 30}
"""
